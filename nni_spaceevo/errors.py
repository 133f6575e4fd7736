"""Every error that a user can meet, by cause.

A message says what was given, what was expected, and which file, stage or key it is about.
"""


class SpaceEvoError(Exception):
    """Root of all errors raised on purpose by nni_spaceevo."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, which may be long, or its type if it is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# These two are also ValueErrors: msgspec then adds where in the file a record was wrong.


class ConfigError(SpaceEvoError, ValueError):
    """A YAML file or an argument has a wrong key or value."""


class CodeError(SpaceEvoError, ValueError):
    """A space code or subnet code does not fit its hyperspace."""


class ConstraintError(SpaceEvoError):
    """A latency constraint that no subnet, or every subnet, meets."""


class PredictorError(SpaceEvoError):
    """A latency predictor is missing, damaged, or lacks a kernel."""


class DeviceError(SpaceEvoError):
    """The device or its runtime cannot measure what was asked."""


class LUTError(SpaceEvoError):
    """A quantized LUT is missing, damaged, or made for another hyperspace."""


class CheckpointError(SpaceEvoError):
    """A checkpoint is damaged or belongs to another run."""


class QuantizationError(SpaceEvoError):
    """A quantizer is used before its range is known, or with a range that cannot be deployed."""


class TrainingError(SpaceEvoError):
    """Training went wrong: a loss that is not finite, or a goal that was not reached."""


class FileAccessError(SpaceEvoError):
    """A file or folder cannot be read or written."""


class LockedError(FileAccessError):
    """Another process is writing the same file."""


class PredictorWarning(UserWarning):
    """A latency predictor is used where its figures may be off: the message says why."""


class CacheWarning(UserWarning):
    """A cache cannot be used, or a file of it is damaged: results are the same, only later."""
