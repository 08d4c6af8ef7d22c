"""Gradient views: a threat model is the module that the attacker differentiates.

A view takes the defended model and gives the module that an attack is run on. So any library's attack runs under any
threat model, and a new threat model is one function and one line in ``VIEWS``.
"""

from collections.abc import Callable

from torch import Tensor, nn

from purifiers.errors import ConfigError
from purifiers.naming import nearest
from purifiers.purifier import PurifiedClassifier


def blind(defended: PurifiedClassifier) -> nn.Module:
    """The classifier alone: the attacker does not know of the purifier (the paper's gray-box)."""
    return defended.classifier


def full(defended: PurifiedClassifier) -> nn.Module:
    """The whole defended model with its exact gradient: the attacker knows everything."""
    return defended


VIEWS: dict[str, Callable[[PurifiedClassifier], nn.Module]] = {"blind": blind, "full": full}


class Features(nn.Module):
    """A classifier seen by its features: images -> the flattened output of one of its layers, (N, F), float32.

    Args:
        classifier: images in [0,1] -> logits.
        layer: dotted name of a layer in it; None takes the logits.

    Raises:
        ConfigError: the classifier has no such layer.
    """

    def __init__(self, classifier: nn.Module, layer: str | None) -> None:
        super().__init__()
        layers = dict(classifier.named_modules())
        if layer is not None and layer not in layers:
            raise ConfigError(f"the classifier has no layer '{layer}'{nearest(layer, [name for name in layers if name])}")
        self.classifier = classifier
        self.layer = layer

    def extra_repr(self) -> str:
        return str(self.layer)  # a part of the fingerprint that cached adversarial examples are found by

    def forward(self, images: Tensor) -> Tensor:
        if self.layer is None:
            return self.classifier(images).float()
        kept: list[Tensor] = []
        handle = self.classifier.get_submodule(self.layer).register_forward_hook(lambda *called: kept.append(called[2]))
        try:
            self.classifier(images)
        finally:
            handle.remove()
        return kept[0].flatten(1).float()
