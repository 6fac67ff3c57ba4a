"""The comparison page of a run that has no champion to compare with. Imports no torch."""

from polarmask.report.page import render


def no_champion_page(reason: str) -> str:
    """Return a self-contained HTML page that says why there is nothing to compare."""
    return render(
        "no_champion.html",
        title="Comparison",
        summary=reason,
        provenance={},
        data=[],
        reason=reason,
    )
