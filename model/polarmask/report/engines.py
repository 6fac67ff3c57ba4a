"""The engines page: how fast each way to run the network is, and which may be used."""

from collections.abc import Mapping

from polarmask.engines.ranking import EngineRanking
from polarmask.report.charts import bar_chart
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
    timed = sorted(
        (engine.milliseconds, engine.name, engine.admitted)
        for engine in ranking.engines
        if engine.milliseconds is not None
    )
    fastest = ranking.fastest_first[:1]
    rows, columns = ranking.canvas_hw
    milliseconds = {name: time for time, name, _ in timed}
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
        chart=bar_chart(
            [name for _, name, _ in timed],
            {
                "admitted": [time if admitted else 0.0 for time, _, admitted in timed],
                "not admitted": [0.0 if admitted else time for time, _, admitted in timed],
            },
            x_label="engine",
            y_label="milliseconds an image",
            stacked=True,
        )
        if timed
        else None,
        engines=sorted(
            ranking.engines,
            key=lambda engine: (not engine.admitted, engine.milliseconds or float("inf")),
        ),
    )
