"""What a recipe may say of the purifiers that ours is compared with."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from purifiers.attacks import SSP
from purifiers.errors import nearest
from purifiers.recipes.parts import Group, Network, OnPerturbed, Optimisation, Positive, folder_name

TRANSFORMATIONS = ("jpeg", "bit_depth", "median", "total_variation", "nothing")
"""Networks that have nothing to learn."""
WRAPPERS = ("adaptive", "noisy", "blend")
"""Networks around the network of a purifier."""


class TrainingNRP(OnPerturbed):
    """NRP's purifier and its critic, together. The weights of its three losses are those of a re-implementation."""

    adversarial_weight: float = Field(default=5e-3, ge=0, allow_inf_nan=False)
    pixel_weight: float = Field(default=1e-2, ge=0, allow_inf_nan=False)
    feature_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)


class TrainingSOAP(Optimisation):
    """SOAP's classifier and its auxiliary task, together.

    ``alpha``: weight of the auxiliary loss; 1 in the paper, for rotation 0.5 in its authors' log.
    ``noise``: standard deviation of the noise on what the auxiliary task is shown, before clipping; in the authors' code 0.5
    for reconstruction and 0.1 for the others, without its negative half for consistency.
    """

    alpha: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    noise: float = Field(default=0.1, ge=0, allow_inf_nan=False)


class _Baseline(Group):
    """What all baselines have: a network, and on how many random test images it is measured (where it is slow)."""

    network: Network
    test_limit: Positive | None = None


class Untrained(_Baseline):
    """A purifier that needs no training: a classical transformation, a wrapper ``around`` a trained one, or SOAP once more.

    ``around``: ``student`` or another baseline, whose network the wrapper gets as its ``base``. A network ``soap`` around a
    trained SOAP is that one with other arguments, such as ``held: true``.
    """

    kind: Literal["untrained"] = "untrained"
    around: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        name = self.network.network
        if name == "soap" and self.around:
            return self
        if name not in (*TRANSFORMATIONS, *WRAPPERS):
            raise ValueError(f"'{name}' needs training, or maps no images{nearest(name, [*TRANSFORMATIONS, *WRAPPERS])}")
        given = [
            word for word, there in (("around", self.around), ("network.base", self.network.arguments.get("base"))) if there
        ]
        if inside := _not_ready(self.network.arguments.get("base")):
            raise ValueError(f"network.base: {inside} is no purifier that needs no training")
        if name in WRAPPERS and len(given) != 1:
            raise ValueError(f"'{name}' goes around a purifier: give either around (such as student) or network.base")
        if name in TRANSFORMATIONS and given:
            raise ValueError(f"'{name}' goes around nothing: leave out {given[0]}")
        return self


class BaselineNRP(_Baseline):
    """NRP (Naseer et al. 2020), trained on the recipe's images in front of the classifier to protect.

    ``attack``: makes its training images from features of the classifier.
    ``feature_layer``: which features, by the dotted name of a layer; the logits where none is given.
    ``limit``: trained on so many random images.
    ``critic_width``: channels of the critic's first convolution.
    """

    kind: Literal["nrp"] = "nrp"
    attack: SSP
    feature_layer: str | None = None
    limit: Positive | None = None
    critic_width: Positive = 64
    training: TrainingNRP

    @field_validator("network")
    @classmethod
    def _is_nrp(cls, network: Network) -> Network:
        return _only(network, "nrp")


class BaselineSOAP(_Baseline):
    """SOAP (Shi et al. 2021): a classifier of its own, which is what it is measured in front of; attacked itself.

    ``limit``: trained on so many random images.
    """

    kind: Literal["soap"] = "soap"
    limit: Positive | None = None
    training: TrainingSOAP

    @field_validator("network")
    @classmethod
    def _is_soap(cls, network: Network) -> Network:
        if _only(network, "soap").arguments.get("classifier") is None:
            raise ValueError("SOAP trains its own classifier: give network.classifier, such as {network: resnet, depth: 20}")
        return network


def _not_ready(base: Any) -> str | None:
    """What in a wrapper's ``base`` would be measured untrained, or is no network."""
    if base is None:
        return None
    if not isinstance(base, Mapping):
        return repr(base)
    name = base.get("network")
    return _not_ready(base.get("base")) if name in (*TRANSFORMATIONS, *WRAPPERS) else f"'{name}'"


def _only(network: Network, name: str) -> Network:
    if network.network != name:
        raise ValueError(f"the network of a baseline of kind {name} is '{name}'; got '{network.network}'")
    return network


AnyBaseline = Annotated[Untrained | BaselineNRP | BaselineSOAP, Field(discriminator="kind")]


def folder_of(title: str) -> str:
    """The folder of a baseline's training state."""
    return f"baseline-{folder_name(title)}"
