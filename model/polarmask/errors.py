"""What can go wrong, by whose hand it is mended.

PolarMaskError
    ConfigError        a setting that can't work            mend the flag or preset
    DataError          images or annotations unusable       mend the files
    LabelStoreError    ray labels absent, stale, damaged    run `polarmask precompute`
    CheckpointError    training state unusable              choose another run folder
    ModelFormatError   model folder unusable                export or train it again
    TrainingError      the loss stopped being a number      lower the learning rate
    TrainingStopped    a signal asked for it                start the same command again

Messages say what, where and what to type. The CLI prints them in one line and exits 2, or 128 + n
when it was stopped by signal n.
"""


class PolarMaskError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(PolarMaskError):
    """A setting, preset name or override can't work."""


class DataError(PolarMaskError):
    """Images or annotations can't be used."""


class LabelStoreError(PolarMaskError):
    """The ray-label store is missing, damaged or made for other data or settings."""


class CheckpointError(PolarMaskError):
    """A training checkpoint can't be read or belongs to another run."""


class ModelFormatError(PolarMaskError):
    """A model folder can't be read or has an unknown format version."""


class TrainingError(PolarMaskError):
    """Training can't go on."""


class TrainingStopped(PolarMaskError):  # noqa: N818  # nothing went wrong
    """A signal stopped the training; its last step is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
