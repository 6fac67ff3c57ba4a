"""The engines page: how fast each way to run the network is, and which may be used."""

from collections.abc import Mapping

from polarmask.engines.ranking import EngineRanking
from polarmask.report.page import Tile, render


def engines_page(
    ranking: EngineRanking, *, provenance: Mapping[str, str], title: str = "Engines"
) -> str:
    """Return a self-contained HTML page.

    Args:
        ranking: Measured on one machine.
        provenance: Shown as name and value; empty values are left out.
        title: Headline.
    """
    milliseconds = {
        engine.name: engine.milliseconds
        for engine in ranking.engines
        if engine.milliseconds is not None
    }
    fastest = ranking.fastest_first[:1]
    rows, columns = ranking.canvas_hw
    tiles = [
        Tile("fastest", fastest[0], f"{milliseconds[fastest[0]]:g} ms an image")
        if fastest
        else Tile("fastest", "-", "no engine is admitted"),
        Tile("admitted", str(len(ranking.fastest_first)), f"of {len(ranking.engines)}"),
        Tile("input", f"{columns} x {rows}", "pixels of the timed image"),
    ]
    return render(
        "engines.html",
        title=title,
        summary=f"fastest: {', '.join(ranking.fastest_first[:3]) or 'none admitted'}; "
        f"on {ranking.cpu}",
        provenance={
            "device": ranking.device,
            "machine": ranking.cpu,
            "images": ranking.images,
            **ranking.versions,
            **provenance,
        },
        data=[],
        tiles=tiles,
        slowest=max(milliseconds.values(), default=1.0),
        engines=sorted(
            ranking.engines,
            key=lambda engine: (not engine.admitted, engine.milliseconds or float("inf")),
        ),
    )
