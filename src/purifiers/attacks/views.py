"""Views: a threat model is the module that the attacker differentiates.

A view is a function, or a class of such modules: the defended model -> the module that an attack is run on. So any library's
attack runs under any threat model, and a new threat model is one function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from purifiers.attacks.base import Around
from purifiers.errors import ConfigError, InputError, nearest
from purifiers.purifier import PurifiedClassifier
from purifiers.registry import Registry


@dataclass(frozen=True)
class View:
    """A threat model; calling it makes the module that an attack on a defended model is run on.

    Attributes:
        build: the defended model -> that module: images in [0,1] -> logits.
        group: what the attacker has; worst cases are over each group.
        attacker: what the attacker does, to follow "An attacker who".
        random_only: it makes sense only for a purifier that draws random numbers.
        gradients: attacks may take gradients.
    """

    build: Callable[[PurifiedClassifier], nn.Module]
    group: Literal["white-box", "gray-box", "transfer", "black-box"] = "white-box"
    attacker: str = "knows the purifier too"
    random_only: bool = False
    gradients: bool = True

    def __call__(self, defended: PurifiedClassifier) -> nn.Module:
        return self.build(defended)


VIEWS: Registry[View] = Registry("view", "purifiers.attacks", make=View)
"""By name. One more threat model, ``transfer``, needs another model to attack; see :mod:`purifiers.evaluation.audit`."""


@VIEWS.register("blind", group="gray-box", attacker="differentiates the classifier alone")
def blind(defended: PurifiedClassifier) -> nn.Module:
    """The classifier alone: the attacker does not know of the purifier (the paper's gray-box)."""
    return defended.classifier


@VIEWS.register("full", attacker="knows the purifier too and differentiates through both")
def full(defended: PurifiedClassifier) -> nn.Module:
    """The whole defended model with its exact gradient: the attacker knows everything."""
    return defended


@VIEWS.register("bpda", attacker="knows the purifier too and uses the identity's gradient in place of its own")
def bpda(defended: PurifiedClassifier) -> nn.Module:
    """The whole defended model, the purifier's gradient replaced by the identity's (Athalye et al. 2018): for purifiers whose
    own gradient is zero, absent or misleading."""
    return PurifiedClassifier(StraightThrough(defended.purifier), defended.classifier)


class StraightThrough(Around):
    """A purifier with the identity's gradient: images -> exactly what it gives; an InputError when called if shapes differ."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            purified = self.model(images.detach())
        if purified.shape != images.shape:
            shapes = f"{tuple(purified.shape)} of {tuple(images.shape)}"
            raise InputError(f"the purifier makes {shapes}: the view bpda needs images of one shape")
        return purified + (images - images.detach())


@VIEWS.register("eot", attacker="knows the purifier too and averages over its random draws", random_only=True)
class Expectation(Around):
    """A random model's mean logits over ``draws`` passes (Athalye et al. 2018): images -> (N, classes).

    Means of logits and of log-probabilities give the same cross-entropy, margin and DLR. The mean of probabilities would lose
    the gradient where one draw is sure. A pass keeps ``draws`` graphs in memory: attack in batches smaller by that factor.

    Args:
        model: images in [0,1] -> logits; draws from torch's global source of randomness.
        draws: at least 1; 20 as in AutoAttack's version for random defences.
    """

    def __init__(self, model: nn.Module, draws: int = 20) -> None:
        super().__init__(model)
        if draws < 1:
            raise InputError(f"an expectation needs at least one draw; got {draws}")
        self.draws = draws

    def extra_repr(self) -> str:
        return f"draws={self.draws}"  # a part of the fingerprint that cached adversarial examples are found by

    def forward(self, images: Tensor) -> Tensor:
        total = self.model(images)
        for _ in range(self.draws - 1):
            total = total + self.model(images)
        return total / self.draws


@VIEWS.register(
    "query", group="black-box", attacker="can only query the purifier and the classifier behind it", gradients=False
)
class Queries(Around):
    """A model that can only be queried: images -> logits (N, classes); an InputError when called for a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            raise InputError("the view query passes no gradients: attack it with square or hop_skip_jump")
        with torch.no_grad():
            return self.model(images)


class Features(nn.Module):
    """A classifier seen by its features: images -> the flattened output of one of its layers, (N, F), float32.

    Args:
        classifier: images in [0,1] -> logits.
        layer: dotted name of a layer in it; None takes the logits.

    Raises:
        ConfigError: the classifier has no such layer; when called, it is not used once, or gives no tensor.
    """

    def __init__(self, classifier: nn.Module, layer: str | None) -> None:
        super().__init__()
        layers = dict(classifier.named_modules())
        if layer is not None and layer not in layers:
            raise ConfigError(f"the classifier has no layer '{layer}'{nearest(layer, [name for name in layers if name])}")
        self.classifier, self.layer = classifier, layer

    def extra_repr(self) -> str:
        return str(self.layer)  # a part of the fingerprint that cached adversarial examples are found by

    def forward(self, images: Tensor) -> Tensor:
        if self.layer is None:
            return self.classifier(images).float()
        kept: list[object] = []
        with self.classifier.get_submodule(self.layer).register_forward_hook(lambda *called: kept.append(called[2])):
            self.classifier(images)
        if len(kept) != 1 or not isinstance(kept[0], Tensor):
            found = ", ".join(type(output).__name__ for output in kept) or "nothing"
            raise ConfigError(f"the layer '{self.layer}' returned {found} for one image; features are one tensor")
        return kept[0].flatten(1).float()
