"""Name and features of this machine's CPU. Imports no torch."""

import platform
from functools import cache
from pathlib import Path

_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""CPU flags: two of x86, and the last one of Arm."""


@cache
def _facts() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions; without them bf16 is slower than float32."""
    facts = _facts()
    flags = facts.get("flags") or facts.get("features", "")
    return bool(_BF16 & set(flags.split()))


def cpu_name() -> str:
    """Return the CPU's model name."""
    return _facts().get("model name") or platform.processor() or platform.machine()
