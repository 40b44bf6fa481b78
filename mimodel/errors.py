"""The errors of mimodel. Each message says what was expected, what came and what to try."""


class MimodelError(Exception):
    """Base of every error that mimodel raises on purpose; the CLI prints it and exits with 2."""


class ConfigError(MimodelError):
    """A configuration is not what it should be."""


class DataError(MimodelError):
    """A data set is missing, damaged, or too small for what is asked of it."""


class TrainingError(MimodelError):
    """A run cannot start, go on, or has become meaningless (a loss that is not finite)."""


class ArtifactError(MimodelError):
    """An artifact is missing, damaged, or of another schema."""


class PatchIndexError(MimodelError):
    """An index of patches is missing, damaged, or of another model."""


class InputError(MimodelError):
    """Pixels given to an artifact do not fit it: bands missing, wrong shape, wrong values."""


def first_line(error: BaseException) -> str:
    """What an error of elsewhere says, without what it adds for those who wrote it."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
