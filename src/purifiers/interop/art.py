"""A purifier as a preprocessing defence of the Adversarial Robustness Toolbox (``pip install 'purifiers[art]'``).

Importing this module raises ConfigError where that library is not installed.
"""

from typing import Any

from torch import Tensor

from purifiers.errors import require
from purifiers.purifier import Purifier

require("art")
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch  # noqa: E402


class PurifierPreprocessor(PreprocessorPyTorch):  # type: ignore[misc]
    """For ``preprocessing_defences`` of ART's ``PyTorchClassifier``: images (N, C, H, W), float32, in [0,1] -> the same.

    Differentiable, so that ART's attacks on an estimator with it are those of somebody who **knows** the purifier. To attack as
    somebody who does not, attack an estimator of the classifier without it.

    Args:
        purifier: on its device, which should be the estimator's.
        apply_fit: purify while ART trains the classifier too.
        apply_predict: purify when it predicts, and when it is attacked.

    Raises:
        InputError: when called, see :class:`purifiers.Purifier`.
    """

    params = ("purifier",)

    def __init__(self, purifier: Purifier, *, apply_fit: bool = False, apply_predict: bool = True) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.purifier = purifier
        weight = next(purifier.parameters(), None)
        if weight is not None:
            self._device = weight.device

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """The purified images, with their gradient, and ``y`` as it is."""
        return self.purifier(x), y
