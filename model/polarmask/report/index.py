"""The index of a folder: it links the pages that are there.

Each command that adds a page to a run calls `add_page`. An index lists the pages of its folder and
of the folders in it; what it says about a page is in the page's own head.
"""

from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

from polarmask.report.page import INDEX_MARK, render
from polarmask.system.files import write_text

INDEX = "index.html"

_ORDER = ("inspection", "data", "labels", "training", "evaluation", "comparison", "engines")
_HEAD_CHARACTERS = 4096


def add_page(folder: Path, name: str, page: str) -> Path:
    """Write a page into a folder, with a link to the folder's index, and write the index again.

    The index of the folder above is written again, too, if there is one.

    Args:
        folder: Run folder, or other folder for pages.
        name: The page's file name, such as `evaluation.html`; may be in a folder below.
        page: What a function of `polarmask.report` returned.

    Returns:
        Where the page is.
    """
    path = folder / name
    up = "../" * name.count("/")
    link = f'<a class="back" href="{up}{INDEX}">all pages</a>'
    write_text(path, page.replace(INDEX_MARK, link, 1))
    write_index(folder)
    if _entry(folder.parent, folder.parent / INDEX) is not None:
        write_index(folder.parent)
    return path


def write_index(folder: Path) -> Path:
    """Write the index of the pages in a folder, and return where it is."""
    paths = [*folder.glob("*.html"), *folder.glob("*/*.html")]
    entries = [_entry(folder, path) for path in paths if path.name != INDEX]
    found = sorted((entry for entry in entries if entry is not None), key=_Entry.order)
    page = render(
        "index.html",
        title=folder.resolve().name,
        summary=", ".join(entry.title for entry in found),
        provenance={},
        data=[],
        entries=found,
    )
    write_text(folder / INDEX, page)
    return folder / INDEX


@dataclass(frozen=True)
class _Entry:
    """A page in the index."""

    path: str
    """From the folder of the index, with `/`."""
    title: str
    summary: str
    written: str

    @property
    def address(self) -> str:
        """The path as a relative URL."""
        return quote(self.path)

    def order(self) -> tuple[int, int, str]:
        """Return the key to sort by: pages of the folder itself first, then the usual order."""
        name = Path(self.path).stem
        place = _ORDER.index(name) if name in _ORDER else len(_ORDER)
        return self.path.count("/"), place, self.path


class _Head(HTMLParser):
    """Reads title and `<meta name=... content=...>` from the head of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self.meta: dict[str, str] = {}
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "meta" and "name" in values:
            self.meta[values["name"]] = values.get("content", "")
        self._in_title = tag == "title"

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


def _entry(folder: Path, path: Path) -> _Entry | None:
    """Return what a page says about itself; None for a file that is no page of ours."""
    head = _Head()
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        head.feed(file.read(_HEAD_CHARACTERS))
    if head.meta.get("generator") != "polarmask":
        return None
    return _Entry(
        path=path.relative_to(folder).as_posix(),
        title=head.title,
        summary=head.meta.get("description", ""),
        written=head.meta.get("date", ""),
    )
