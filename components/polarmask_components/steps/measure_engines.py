"""Step: rank the engines that may run the candidate by speed. Succeeds with any result."""

from kfp import dsl

from polarmask_components.images import TRAINER_IMAGE


@dsl.component(base_image=TRAINER_IMAGE, install_kfp_package=False)
def measure_engines(
    model: dsl.Input[dsl.Model],
    dataset: dsl.Input[dsl.Dataset],
    code_version: str,
    ranking: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    device: str = "",
) -> str:
    """Run the model with every engine on the kind of device that serves.

    On a CPU with one thread, as a server does. Times are those of this machine. Which engines may
    run (equal answers, mask AP kept) holds on any machine; a server whose CPU lacks bf16 takes the
    next engine of the ranking.

    Args:
        model: Model folder.
        dataset: COCO folder; the first 32 images of its val split are used.
        code_version: Hash of the installed code.
        ranking: The engine ranking (JSON), which goes into the archive; metadata: code_version.
        page: The same, with a chart.
        device: Of the server: `cpu` or `cuda`; empty takes CUDA where there is one.

    Returns:
        Names of the admitted engines, fastest first, separated by spaces.
    """
    import logging
    from pathlib import Path

    import torch

    from polarmask.evaluation.measure_engines import measure_engines, ranking_table
    from polarmask.report.engines import engines_page
    from polarmask.system.files import write_text
    from polarmask_components.step_inputs import folder_of

    torch.set_num_threads(1)
    own = device or None
    measured = measure_engines(Path(model.path), data=folder_of(dataset), device=own)
    logging.getLogger(__name__).info("%s", ranking_table(measured))
    write_text(Path(ranking.path), measured.to_json())
    html = engines_page(measured, provenance={"code_version": code_version})
    write_text(Path(page.path), html)
    ranking.metadata["code_version"] = code_version
    return " ".join(measured.fastest_first)
