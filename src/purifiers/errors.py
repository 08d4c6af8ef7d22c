"""Errors for the user: each message has what was wrong, where, and what to do.

Each class also derives from the matching built-in error, so ``except ValueError`` and ``except FileNotFoundError`` work.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

_RESEARCH = "foolbox jinja2 lightning_fabric matplotlib pooch pyautoattack pydantic requests scipy skimage sklearn torchmetrics"
EXTRAS = {
    "research": tuple(_RESEARCH.split()),
    "transformers": ("transformers",),
    "hub": ("huggingface_hub",),
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "serve": ("fastapi", "httptools", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "app": ("gradio",),
    "art": ("art", "multiprocess"),
    "ray": ("pyarrow", "ray"),
}
"""Extra of this package (``pip install 'purifiers[extra]'``) -> the modules that it installs and that we import."""


def first_line(error: Exception) -> str:
    """The first line of another library's error message, shortened; the error's type if the message is empty."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


class PurifiersError(Exception):
    """Base class of all errors of this library."""


class InputError(PurifiersError, ValueError):
    """An image tensor, label tensor or argument is not what the function takes."""


class ConfigError(PurifiersError, ValueError):
    """A recipe, an override or a command-line value is not valid."""


class DataError(PurifiersError, ValueError):
    """Images on disk are damaged, or not laid out as expected."""


class ImageTooLargeError(DataError):
    """An image has more pixels than are allowed."""


class MissingFileError(PurifiersError, FileNotFoundError):
    """A requested file or folder does not exist."""


class CheckpointError(PurifiersError, ValueError):
    """A weights file or checkpoint is damaged, or belongs to another network or run."""


class TrainingError(PurifiersError, RuntimeError):
    """Training cannot continue, for example because a loss is not finite."""


class DeviceMemoryError(PurifiersError, MemoryError):
    """The device's memory is too small for one image, or for a step of training."""


class OutOfTime(PurifiersError, TimeoutError):  # noqa: N818 (not an error)
    """The time limit was reached. Finished work is kept; the same call resumes."""


class Unfinished(PurifiersError):  # noqa: N818 (not an error)
    """This process's share of the work is finished, and those of others are not."""


class AttackError(PurifiersError, RuntimeError):
    """An attack returned images outside its threat model, or needs a gradient that the model does not provide."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message about an unknown ``name``: the nearest valid name if one is close, otherwise all of them."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(names)}" if names else ""


@contextmanager
def explain_missing() -> Iterator[None]:
    """Turn the ``ModuleNotFoundError`` of a package in :data:`EXTRAS` into a ConfigError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = next((extra for extra, modules in EXTRAS.items() if error.name in modules), None)
        if extra is None:
            raise
        how = f"pip install 'purifiers[{extra}]', or '.[{extra}]' in a clone"
        raise ConfigError(f"this needs {error.name}, which is not installed: {how}") from error


def require(module: str) -> ModuleType:
    """Import ``module``, dotted, of a package in :data:`EXTRAS`; raises as :func:`explain_missing` does."""
    with explain_missing():
        return import_module(module)
