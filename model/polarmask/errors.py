"""Exceptions, and who fixes what.

PolarMaskError
    ConfigError        a setting that can't work            user: change the flag or preset
    DataError          images or annotations unusable       user: repair the files
    LabelStoreError    ray labels missing, stale, damaged   user: run `polarmask precompute`
    CheckpointError    training state unusable              user: choose another run folder
    ModelFormatError   model folder unusable                user: train or fetch the model again
    TrainingError      the loss became NaN or infinite      user: lower the learning rate
    ServerError        a server gives no predictions        user: look at its address, token, log
    TrainingStopped    a signal stopped the training        user: start the same command again

Messages say what failed, where, and what to type. The command line prints them in one line and
exits with 2, or with 128 + n when signal n stopped it. Any other exception is a bug of ours.
"""


class PolarMaskError(Exception):
    """Base of all exceptions that this package raises on purpose.

    Attributes:
        exit_code: Of a command that it ends.
    """

    exit_code = 2


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
    """The loss or a gradient became NaN or infinite."""


class ServerError(PolarMaskError):
    """A server gives no predictions, whatever the image."""


class TrainingStopped(PolarMaskError):  # noqa: N818  # nothing went wrong
    """A signal stopped the training; the last step is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
