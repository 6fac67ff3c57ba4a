"""Exceptions of this package, and who fixes what.

ComponentError
    DataVersionError           the requested data is not available
        NotARepositoryError        give a git repository
        UnknownRevisionError       give a commit, tag or branch that exists
        NoDataError                that revision has no data.dvc
        MissingObjectsError        the remote can't be reached or lacks files: `dvc push` there
    RegistryError              the model registry refuses
        ConflictError              another run promoted meanwhile; the champion stays
        UnknownVersionError        there is no model of this version
        UnusableModelError         a stored file is damaged or of another release's format
        OtherCategoriesError       the champion finds other categories: use another registry
    StorageError               a folder or object storage can't be used
        DamagedObjectError         an object is missing, or is not what was stored
    LaunchError                the training process ended with an error
        NotStartedError            its pods wait for room: nodes, a quota, a queue
    ClusterError               the Kubernetes API can't be reached, or refuses
    PreflightError             what would stop the run later: a line for each, with the fix
    RollOutError               a cluster does not serve a model; with what answers instead

Errors of `polarmask` and `polarmask_serving` pass through steps unchanged.
"""

from polarmask.system.redaction import redact


class ComponentError(Exception):
    """Base of everything this package raises on purpose; messages hold no tokens of URLs."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redact(str(message)))


class DataVersionError(ComponentError):
    """The requested version of the data is not available."""


class NotARepositoryError(DataVersionError):
    """The place is not a git repository, or can't be reached."""


class UnknownRevisionError(DataVersionError):
    """The repository has no such revision."""


class NoDataError(DataVersionError):
    """The revision has no usable data.dvc."""


class MissingObjectsError(DataVersionError):
    """The DVC remote can't be reached, or files are missing or damaged there."""


class RegistryError(ComponentError):
    """The model registry refuses."""


class ConflictError(RegistryError):
    """The champion is no longer the expected one; nothing was changed."""


class UnknownVersionError(RegistryError):
    """The registry has no model of this version."""


class UnusableModelError(RegistryError):
    """A file of the registry is not what was stored, or has the format of another release."""


class OtherCategoriesError(RegistryError):
    """The champion was trained for other categories than the candidate."""


class LaunchError(ComponentError):
    """The training process ended with an error."""


class NotStartedError(LaunchError):
    """The pods of a training job did not start in time, for no reason that lasts."""


class ClusterError(ComponentError):
    """The Kubernetes API can't be reached, or refuses."""


class StorageError(ComponentError):
    """A folder or object storage can't be used."""


class DamagedObjectError(StorageError):
    """An object is missing, or is not what was stored."""


class PreflightError(ComponentError):
    """What would stop the run later, one line each."""


class RollOutError(ComponentError):
    """A cluster does not serve a model; the message has the reason, and what answers instead."""
