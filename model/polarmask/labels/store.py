"""Labels on disk: made once, read in every epoch.

A store is a folder: shards of up to 128 images (`train-00000.safetensors`) and `index.json`, which
names the data, the settings and the sha256 of every shard. The index is written last: a folder
without one is an unfinished store, and `precompute` resumes it.

Ray lengths are stored as 16-bit logarithms, 2900 steps per octave: at most 0.012 % off from
1/1024 px to 6,400 px, because the loss sees ratios, not pixels (ADR 0004).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from polarmask.config.settings import RunConfig, to_dict
from polarmask.data.labels import ImageLabels
from polarmask.data.summary import SplitSummary
from polarmask.errors import DataError, LabelStoreError
from polarmask.system.files import atomic_path, leaves_folder, sha256_of_file, write_text
from polarmask.system.formats import JsonFormat

FORMAT = JsonFormat(3, LabelStoreError, "delete the folder and run `polarmask precompute` again")
SHARD_IMAGES = 128

_STEPS_PER_OCTAVE = 2900
_LOWEST_OCTAVE = -10  # below rays.MIN_LENGTH
_HIGHEST_CODE = 2**16 - 1


_COUNTED_BY = {
    "location_P3": "positives",
    "object_P": "positives",
    "ray_PR": "positives",
    "category_G": "objects",
    "box_G4": "objects",
    "annotation_G": "objects",
    "iou_G": "objects",
    "ignored_I3": "ignored",
}
_STORED_TYPE = {
    "location_P3": np.uint16,
    "object_P": np.uint16,
    "category_G": np.uint16,
    "box_G4": np.float32,
    "annotation_G": np.int64,
    "iou_G": np.float16,
    "ignored_I3": np.uint16,
}


def encode_lengths(length: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Turn pixels into 16-bit logarithms; what is shorter becomes the shortest."""
    length = np.maximum(length, np.float32(2.0**_LOWEST_OCTAVE))
    code = np.round((np.log2(length) - _LOWEST_OCTAVE) * _STEPS_PER_OCTAVE)
    return np.clip(code, 0, _HIGHEST_CODE).astype(np.uint16)


def decode_lengths(code: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Turn 16-bit logarithms into pixels."""
    return np.exp2(code.astype(np.float32) / _STEPS_PER_OCTAVE + _LOWEST_OCTAVE)


def label_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that labels depend on: a store serves every run that agrees on them."""
    plain = to_dict(config)
    names = ["short_side", "max_side", "keep_ratio", "multiple"]
    if config.input.crop:  # stores that were made before there were crops stay valid
        names.append("crop")
    return {
        "input": {name: plain["input"][name] for name in names},
        "labels": plain["labels"],
        "num_rays": config.model.num_rays,
        "strides": list(config.model.strides),
    }


def write_shard(path: Path, images: list[ImageLabels], key: str, facts: dict[str, Any]) -> None:
    """Write images to one file, atomically.

    Args:
        path: The file.
        images: Their labels, in order; may be empty.
        key: Hash of the data and settings; `shard_facts` compares it.
        facts: What `shard_facts` returns: JSON-ready.
    """

    def joined(values: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(values) if values else np.zeros(0, dtype=np.float32)

    arrays: dict[str, NDArray[Any]] = {
        "image_id": np.array([labels.image_id for labels in images], dtype=np.int64),
        "canvas_hw": np.array([labels.canvas_hw for labels in images], dtype=np.int32),
        "ray_code": encode_lengths(joined([labels.ray_PR for labels in images])),
    }
    for name, stored in _STORED_TYPE.items():
        values = joined([getattr(labels, name) for labels in images])
        wide = stored is np.uint16 and values.max(initial=0) > np.iinfo(np.uint16).max
        arrays[name] = values.astype(np.uint32 if wide else stored)
    for group, name in (
        ("positives", "object_P"),
        ("objects", "box_G4"),
        ("ignored", "ignored_I3"),
    ):
        counts = [len(getattr(labels, name)) for labels in images]
        arrays[f"{group}_offset"] = np.cumsum([0, *counts], dtype=np.int64)
    # safetensors writes memory as it is and ignores strides.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        # One entry: safetensors writes several in any order, and equal stores are equal files.
        about = json.dumps({"key": key, "facts": facts})
        temporary.write_bytes(save(arrays, metadata={"about": about}))


def shard_facts(path: Path, key: str) -> dict[str, Any] | None:
    """Return the facts that a shard was written with; None unless it is whole and has this key."""
    try:
        with safe_open(path, framework="np") as shard:
            about = json.loads(dict(shard.metadata() or {}).get("about", "{}"))
    except (OSError, SafetensorError):
        return None
    return about["facts"] if about.get("key") == key else None


@dataclass(frozen=True)
class LabelSummary:
    """A split in numbers."""

    images: int
    instances: int
    positives: int
    without_positive: int
    """Objects that no location learns."""
    ignored: int
    """Crowd regions and objects too small for the input size."""
    per_category_iou: dict[str, float]
    """Mean mask IoU that perfectly predicted rays reach, by `coco.category_labels`."""
    per_category_instances: dict[str, int]
    worst: tuple[tuple[str, int, float], ...]
    """File name, annotation id and IoU of the worst-fitting objects."""

    @property
    def mean_iou(self) -> float:
        """Mean over instances; 0 without any."""
        weighted = (
            self.per_category_iou[name] * count
            for name, count in self.per_category_instances.items()
        )
        return sum(weighted) / self.instances if self.instances else 0.0

    def require_learnable(self, place: str) -> None:
        """Raise DataError if no object would be learned."""
        if self.positives:
            return
        cause = (
            f"no location of the network learns one of its {self.instances:,} objects"
            if self.instances
            else "all objects are too small at the network's input"
        )
        raise DataError(
            f"{place}: nothing can be learned: {cause}. Outlines may be in other units than pixels "
            "of the image, or input.short_side, model.strides or labels.min_area do not fit them; "
            "`polarmask inspect` shows sizes"
        )


class LabelStore:
    """A finished store, opened for reading."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self._index = index
        self._shards: dict[str, _Shard] = {}
        self._place: dict[str, dict[int, tuple[str, int]]] = {
            split: {
                image_id: (shard["file"], position)
                for shard in entry["shards"]
                for position, image_id in enumerate(shard["images"])
            }
            for split, entry in index["splits"].items()
        }

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "LabelStore":
        """Open a store.

        Args:
            folder: Where `polarmask precompute` wrote it.
            verify: Compare the sha256 of every shard too.

        Raises:
            LabelStoreError: No finished store, another format version, or damaged shards.
        """
        path = folder / "index.json"
        if not path.is_file():
            raise LabelStoreError(
                f"{folder} holds no finished label store; run `polarmask precompute`"
            )
        index = FORMAT.load(path.read_bytes(), where=path)
        try:
            store = cls(folder, index)
            shards = [each for entry in index["splits"].values() for each in entry["shards"]]
            outside = [each["file"] for each in shards if leaves_folder(each["file"])]
            stored = {folder / each["file"]: each["sha256"] for each in shards}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FORMAT.damaged(path, f"an entry is missing or wrong: {error}") from error
        if outside:
            raise FORMAT.damaged(path, f"{outside[0]!r} leads out of the folder")
        for file, sha256 in stored.items():
            if not file.is_file() or (verify and sha256_of_file(file) != sha256):
                raise LabelStoreError(
                    f"{file} is missing or damaged; delete {path} and run "
                    "`polarmask precompute` again, it remakes what is not whole"
                )
        return store

    @classmethod
    def write_index(
        cls, folder: Path, settings: dict[str, Any], splits: dict[str, Any]
    ) -> "LabelStore":
        """Finish a store: write its index and open it."""
        index = {"settings": settings, "splits": splits}
        write_text(folder / "index.json", FORMAT.dump(index))
        return cls.open(folder)

    def require(self, config: RunConfig, data_hashes: dict[str, str]) -> None:
        """Raise LabelStoreError unless the store was made for these settings and this data."""
        wanted = label_settings(config)
        for name, value in self._index["settings"].items():
            if wanted[name] != value:
                raise LabelStoreError(
                    f"{self.folder} was made with {name} {value}, the run has {wanted[name]}; "
                    "run `polarmask precompute` again or change the run"
                )
        for split, data_hash in data_hashes.items():
            entry = self._index["splits"].get(split)
            if entry is None or entry["data_hash"] != data_hash:
                raise LabelStoreError(
                    f"{self.folder} was made for other {split} annotations; "
                    "run `polarmask precompute` again"
                )

    def image_ids(self, split: str) -> list[int]:
        """Return the images of a split, in the order of the data."""
        return list(self._place[split])

    def read(self, split: str, image_id: int) -> ImageLabels:
        """Read the labels of one image."""
        file, position = self._place[split][image_id]
        if file not in self._shards:
            self._shards[file] = _Shard(self.folder / file)
        shard = self._shards[file]
        fields: dict[str, Any] = {
            name: shard.read("ray_code" if name == "ray_PR" else name, group, position)
            for name, group in _COUNTED_BY.items()
        }
        fields["ray_PR"] = decode_lengths(fields["ray_PR"])
        for name in ("location_P3", "object_P", "category_G", "ignored_I3"):
            fields[name] = fields[name].astype(np.int64)
        fields["annotation_G"] = fields["annotation_G"].astype(np.int64)
        fields["iou_G"] = fields["iou_G"].astype(np.float32)
        rows, columns = shard.canvas_hw[position].tolist()
        return ImageLabels(image_id=image_id, canvas_hw=(rows, columns), **fields)

    def summary(self, split: str) -> LabelSummary:
        """Return a split in numbers, as counted when the store was made."""
        stored = self._index["splits"][split]["summary"]
        worst = tuple((name, annotation, iou) for name, annotation, iou in stored["worst"])
        return LabelSummary(**{**stored, "worst": worst})

    def data(self, split: str) -> SplitSummary:
        """Return which images and objects of a split have labels, and what was left out."""
        return SplitSummary.from_json(self._index["splits"][split]["data"])


class _Shard:
    def __init__(self, path: Path) -> None:
        self.file: Any = safe_open(path, framework="np")
        self.canvas_hw = self.file.get_tensor("canvas_hw")
        self.offsets = {
            group: self.file.get_tensor(f"{group}_offset")
            for group in ("positives", "objects", "ignored")
        }

    def read(self, name: str, group: str, position: int) -> NDArray[Any]:
        """Read one image's rows of an array without touching the others'."""
        first, last = self.offsets[group][position : position + 2]
        if first == last:  # safetensors refuses to slice an empty array
            return np.empty((0, *self.file.get_slice(name).get_shape()[1:]), dtype=np.float32)
        rows: NDArray[Any] = self.file.get_slice(name)[first:last]
        return rows
