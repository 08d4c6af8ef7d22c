"""purifiers: make an image classifier withstand adversarial examples without touching it."""

from typing import TYPE_CHECKING, Any

from purifiers.errors import explain_missing
from purifiers.version import __version__

if TYPE_CHECKING:
    from purifiers.purifier import PurifiedClassifier, Purifier

__all__ = ["PurifiedClassifier", "Purifier", "__version__"]


def __getattr__(name: str) -> Any:
    # On first use, so that the command line answers before torch has loaded.
    if name in __all__:
        with explain_missing():
            from purifiers import purifier

        return getattr(purifier, name)
    raise AttributeError(f"module 'purifiers' has no attribute '{name}'")
