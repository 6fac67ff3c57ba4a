"""JSON files that carry the version of their format.

One `JsonFormat` per kind of file, as a constant of the module that owns it:

    _FORMAT = JsonFormat(2, LabelStoreError, "delete the folder and run `polarmask precompute`")
    write_text(path, _FORMAT.dump({"splits": ...}))
    content = _FORMAT.load(path.read_text(), where=path)  # without "format_version"
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_KEY = "format_version"
_REASON_CHARS = 300


@dataclass(frozen=True)
class JsonFormat:
    """A kind of JSON file."""

    version: int
    """The version that is written, and the only one that is read."""
    error: Callable[[str], Exception]
    """The exception to raise for a file that can't be read."""
    cure: str
    """What the user can do about such a file, as the end of the error message."""

    def stamp(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content with its format version in front."""
        return {_KEY: self.version, **content}

    def dump(self, content: Mapping[str, Any]) -> str:
        """Return the content as JSON text with its format version."""
        return json.dumps(self.stamp(content), indent=1) + "\n"

    def load(self, text: str | bytes, *, where: object) -> dict[str, Any]:
        """Return what `dump` was given; `where` names the file in errors.

        Raises:
            Exception: `error`, if the text is not a JSON object of this format version.
        """
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as error:  # the latter: nested too deeply
            raise self.damaged(where, error) from error
        return self.check(plain, where=where)

    def check(self, plain: object, *, where: object) -> dict[str, Any]:
        """Return what `stamp` was given.

        Raises:
            Exception: `error`, if this is not a dict of this format version.
        """
        if not isinstance(plain, dict):
            raise self.damaged(where, "it is not a JSON object")
        found = plain.get(_KEY)
        if found != self.version:
            raise self.error(
                f"{where} has format version {reprlib.repr(found)}, this code reads "
                f"{self.version}; {self.cure}"
            )
        return {key: value for key, value in plain.items() if key != _KEY}

    def damaged(self, where: object, reason: object) -> Exception:
        """Return the exception for a file whose content can't be used."""
        line = " ".join(str(reason).split())
        return self.error(f"{where} can't be read ({line[:_REASON_CHARS]}); {self.cure}")
