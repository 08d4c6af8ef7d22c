"""purifiers: make an image classifier withstand adversarial examples without touching it."""

from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.version import __version__

__all__ = ["PurifiedClassifier", "Purifier", "__version__"]
