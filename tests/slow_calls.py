"""Find tests that start processes or train, by the names in their code; the others are fast."""

import inspect
import sys
from functools import cache
from pathlib import Path

SLOW_NAMES = {
    *("subprocess", "Popen", "multiprocessing", "spawn"),
    *("train", "measure_engines", "quantize_program", "export_program", "build_archive"),
    *(
        "LocalPod",
        "Kubelet",
        "run_job",
        "deploy",
        "ask_champion",
        "Workers",
        "evaluate_on_machine",
        "polarmask_serving.__main__.main",
    ),
}
"""Functions and classes that take seconds; common names are given with their module."""

_HERE = str(Path(__file__).parent)


@cache
def is_slow(thing):
    """Return whether a function or class of the tests reaches a slow name.

    It looks into functions and classes that are defined below tests/, and no further.
    """
    pending, seen = [thing], set()
    while pending:
        found = inspect.unwrap(pending.pop())
        if found in seen or not _is_ours(found):
            continue
        seen.add(found)
        for function in _functions_of(found):
            names = set(_names_in(function.__code__))
            used = [function.__globals__.get(name) for name in names]
            used = [each for each in used if inspect.isfunction(each) or inspect.isclass(each)]
            if SLOW_NAMES & (names | {f"{each.__module__}.{each.__name__}" for each in used}):
                return True
            pending += used
    return False


def _is_ours(thing):
    module = sys.modules.get(thing.__module__)
    return str(getattr(module, "__file__", "")).startswith(_HERE)


def _functions_of(thing):
    every = vars(thing).values() if inspect.isclass(thing) else [thing]
    return [inspect.unwrap(each) for each in every if inspect.isfunction(each)]


def _names_in(code):
    yield from code.co_names
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names_in(constant)
