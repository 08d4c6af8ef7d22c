"""A purifier as a preprocessing defence of the Adversarial Robustness Toolbox (``pip install 'purifiers[art]'``)."""

from typing import Any

from torch import Tensor

from purifiers.errors import explain_missing
from purifiers.purifier import Purifier

with explain_missing():
    import art  # noqa: F401 - the error then names the package
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch


class PurifierPreprocessor(PreprocessorPyTorch):  # type: ignore[misc]
    """For ``preprocessing_defences`` of ART's ``PyTorchClassifier``: images (N, C, H, W), float32, in [0,1] -> the same.

    Differentiable: ART's attacks on an estimator with it are those of an attacker who **knows** the purifier. For an attacker
    who does not, attack an estimator of the classifier alone.

    Args:
        purifier: on its device, which should be the estimator's.
        apply_fit: purify while ART trains the classifier too.
        apply_predict: purify when it predicts or is attacked.
    """

    params = ("purifier",)

    def __init__(self, purifier: Purifier, *, apply_fit: bool = False, apply_predict: bool = True) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.purifier = purifier
        if (weight := next(purifier.parameters(), None)) is not None:
            self._device = weight.device

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """The purified images, and ``y`` unchanged."""
        return self.purifier(x), y
