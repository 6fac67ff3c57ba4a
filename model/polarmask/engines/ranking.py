"""The engine ranking of a model: measured times and answers per engine. Imports no torch."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from polarmask.config.validation import read_settings
from polarmask.errors import ConfigError, ModelFormatError
from polarmask.system.formats import JsonFormat

_FORMAT = JsonFormat(
    1, ModelFormatError, "measure the engines again: `python -m polarmask_serving measure`"
)
RANKING_FILE = "engines.json"
"""Within the model folder."""


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """One engine. None where nothing was measured."""

    name: str
    admitted: bool
    """Whether it may run the model."""
    reason: str
    """Why, or why not."""
    milliseconds: float | None = None
    """Of one image of `canvas_hw` through the network on one thread."""
    score_difference: float | None = None
    """Largest difference of a score from eager float32."""
    ray_difference: float | None = None
    """Largest difference of a ray, as a fraction of its length."""
    mask_ap: float | None = None
    """On the images of the ranking, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class EngineRanking:
    """All engines of one model on one machine."""

    weights_sha256: str
    """Of the model's weights: a ranking holds for one model."""
    device: str
    cpu: str
    versions: dict[str, str] = field(default_factory=dict)
    """Of torch, openvino, onnxruntime."""
    canvas_hw: tuple[int, int]
    images: str
    """Which images were used."""
    engines: tuple[EngineResult, ...]
    calibration: dict[str, Any] = field(default_factory=dict)
    """Ranges of the network's values, see `quantize`; empty without measured ranges."""

    @property
    def fastest_first(self) -> tuple[str, ...]:
        """Names of the admitted engines, fastest first."""
        timed = [
            (engine.milliseconds, engine.name)
            for engine in self.engines
            if engine.admitted and engine.milliseconds is not None
        ]
        return tuple(name for _, name in sorted(timed))

    def to_plain(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        plain = {**asdict(self), "ranking": self.fastest_first}
        return _FORMAT.stamp(plain | {"engines": [asdict(engine) for engine in self.engines]})

    def to_json(self) -> str:
        """Return the content of `engines.json`."""
        return json.dumps(self.to_plain(), indent=1) + "\n"

    @classmethod
    def from_plain(cls, plain: object, *, where: object) -> "EngineRanking":
        """Read what `to_plain` returned.

        Raises:
            ModelFormatError: Damaged, or of an unknown format version; `where` names the file.
        """
        values = _FORMAT.check(plain, where=where)
        try:
            del values["ranking"]  # follows from the engines
            return read_settings(cls, values)
        except (KeyError, ConfigError) as error:
            raise _FORMAT.damaged(where, error) from error


def read_ranking(path: Path) -> EngineRanking:
    """Read an `engines.json`.

    Raises:
        ModelFormatError: The file is missing or can't be used.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _FORMAT.damaged(path, error) from error
    return EngineRanking.from_plain(_FORMAT.stamp(_FORMAT.load(text, where=path)), where=path)
