"""Errors meant for the person at the keyboard: each says what was wrong, where, and what to do.

Each class also derives from the built-in error that a Python caller would expect, so ``except ValueError`` and
``except FileNotFoundError`` work. The command line prints the message alone and exits with status 1.
"""


def first_line(error: Exception) -> str:
    """What another library's error says first, shortened; its kind where it says nothing."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


class PurifiersError(Exception):
    """Base of every error that this library raises on purpose."""


class InputError(PurifiersError, ValueError):
    """An image tensor, label tensor or argument is not what the function takes."""


class ConfigError(PurifiersError, ValueError):
    """A recipe, an override or a command-line value is not valid."""


class DataError(PurifiersError, ValueError):
    """Images on disk are damaged, or not laid out as expected."""


class ImageTooLargeError(DataError):
    """An image has more pixels than are allowed."""


class MissingFileError(PurifiersError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class CheckpointError(PurifiersError, ValueError):
    """A weights file or checkpoint is damaged, or belongs to something else."""


class TrainingError(PurifiersError, RuntimeError):
    """Training cannot go on, for example because a loss is not finite."""


class OutOfTime(PurifiersError, TimeoutError):  # noqa: N818 (nothing is wrong)
    """The time limit that was asked for is reached. Everything finished is kept; the same call goes on from there."""


class ServiceError(PurifiersError, RuntimeError):
    """The service had to stop: its worker did not start, or died."""


class AttackError(PurifiersError, RuntimeError):
    """An attack returned images outside its own threat model, or needs a gradient that the model does not pass."""
