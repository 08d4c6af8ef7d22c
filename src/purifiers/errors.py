"""Errors meant for the person at the keyboard: each says what was wrong, where, and what to do.

Each class also derives from the built-in error that a Python caller would expect, so ``except ValueError`` and
``except FileNotFoundError`` work. The command line prints the message alone and exits with status 1.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType


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


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message about ``name``: the nearest valid name if one is near, else all of them."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(names)}" if names else ""


def require(module: str, extra: str = "all") -> ModuleType:
    """Import ``module``, dotted, which comes with the package's ``extra``.

    Raises:
        ConfigError: it is not installed; the message says how to.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:  # it is there, and something of its own is not: that is another story
            raise
        how = f"pip install 'purifiers[{extra}]', or '.[{extra}]' in a clone"
        raise ConfigError(f"this needs {package}, which is not installed: {how}") from error
