"""purifiers: make an image classifier withstand adversarial examples without touching it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from purifiers.errors import explain_missing
from purifiers.version import __version__

if TYPE_CHECKING:
    from purifiers import attacks
    from purifiers.classifiers.load import load_classifier
    from purifiers.evaluation.audit.run import audit
    from purifiers.evaluation.evaluate import evaluate
    from purifiers.purifier import PurifiedClassifier, Purifier
    from purifiers.training.pipeline import train
    from purifiers.weights import list_classifiers, list_purifiers

__all__ = [
    "PurifiedClassifier",
    "Purifier",
    "__version__",
    "attacks",
    "audit",
    "evaluate",
    "list_classifiers",
    "list_purifiers",
    "load_classifier",
    "train",
]

_MODULES = {
    "Purifier": "purifier",
    "PurifiedClassifier": "purifier",
    "list_purifiers": "weights",
    "list_classifiers": "weights",
    "load_classifier": "classifiers.load",
    "train": "training.pipeline",
    "evaluate": "evaluation.evaluate",
    "audit": "evaluation.audit.run",
}


def __getattr__(name: str) -> Any:
    # On first use, so that the command line starts before torch has loaded, and nothing is imported that is not used.
    with explain_missing():
        if name == "attacks":
            return import_module("purifiers.attacks")
        if name in _MODULES:
            return getattr(import_module(f"purifiers.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'purifiers' has no attribute '{name}'")
