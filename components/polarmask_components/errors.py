"""What can go wrong around a run, by whose hand it is mended.

ComponentError
    DataVersionError           the asked-for data can't be had
        NotARepositoryError        give a git repository
        UnknownRevisionError       give a commit, tag or branch that exists
        NoDataError                that revision holds no data.dvc
        MissingObjectsError        the remote can't be reached or lacks files: `dvc push` there
    RegistryError              the champion registry can't be used
        ConflictError              another run promoted meanwhile; the champion stays
        UnknownVersionError        no model of this version
        UnusableModelError         a stored file is damaged or of another release's format
        OtherCategoriesError       the champion finds other things: use another registry
    LaunchError                the training process ended with an error
    StorageError               object storage can't be used, or what was stored is not there whole
    ClusterError               the Kubernetes API can't be reached, or refuses
    PreflightError             would stop the run later; a line for each thing, and how to mend it
    RollOutError               a cluster did not take a model; says what answers instead

Errors of `polarmask` and `polarmask_serving` pass through steps unchanged.
"""


class ComponentError(Exception):
    """Base of everything this package raises on purpose."""


class DataVersionError(ComponentError):
    """The asked-for version of the data can't be had."""


class NotARepositoryError(DataVersionError):
    """The place is no git repository, or can't be reached."""


class UnknownRevisionError(DataVersionError):
    """The repository has no such revision."""


class NoDataError(DataVersionError):
    """The revision holds no usable data.dvc."""


class MissingObjectsError(DataVersionError):
    """The DVC remote can't be reached, or files are missing or damaged there."""


class RegistryError(ComponentError):
    """The champion registry can't be used."""


class ConflictError(RegistryError):
    """The champion is not the expected one any more; nothing was changed."""


class UnknownVersionError(RegistryError):
    """The registry holds no model of this version."""


class UnusableModelError(RegistryError):
    """A file of the registry is not what was stored, or of a format of another release."""


class OtherCategoriesError(RegistryError):
    """The champion was made for other categories than the candidate."""


class LaunchError(ComponentError):
    """The training process ended with an error."""


class ClusterError(ComponentError):
    """The Kubernetes API can't be reached, or does not allow what was asked."""


class StorageError(ComponentError):
    """Object storage can't be used, or what was stored there is missing or damaged."""


class PreflightError(ComponentError):
    """Things that would stop the run later, one line each."""


class RollOutError(ComponentError):
    """A cluster did not take a model; the message says why, and what answers instead."""
