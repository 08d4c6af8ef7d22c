"""A recipe's settings of the purifiers that ours is compared with."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator
from torch import nn

from purifiers.attacks import SSP
from purifiers.baselines.classical import Nothing, Shrink, Transformation, Wrapper
from purifiers.errors import CheckpointError, MissingFileError, nearest
from purifiers.kinds import Kind
from purifiers.recipes.parts import NetworkConfig, OnPerturbed, Optimisation, Place, Positive, folder_name
from purifiers.registry import NETWORKS, Registry, describe, load_network
from purifiers.weights import PURIFIERS, locate

BASELINES: Registry[type["Baseline"]] = Registry("baseline", "purifiers.recipes")  # the values of a baseline's ``kind``


class TrainingNRP(OnPerturbed):
    """NRP's purifier and its critic, together. The weights of its three losses are those of a re-implementation."""

    adversarial_weight: float = Field(default=5e-3, ge=0)
    pixel_weight: float = Field(default=1e-2, ge=0)
    feature_weight: float = Field(default=1.0, ge=0)


class TrainingSOAP(Optimisation):
    """SOAP's classifier and its auxiliary task, together.

    ``noise``: standard deviation of the noise on the auxiliary task's input, before clipping; in the authors' code 0.5 for
    reconstruction and 0.1 for the others, without its negative half for consistency.
    """

    alpha: float = Field(default=1.0, ge=0)  # weight of the auxiliary loss; for rotation 0.5 in their log
    noise: float = Field(default=0.1, ge=0)


class Baseline(Kind):
    """Base of all baselines."""

    registry: ClassVar[Registry[Any]] = BASELINES

    network: NetworkConfig  # images -> images
    test_limit: Positive | None = None  # of the random test images it is measured on, where it is slow

    def build(self, classes: int) -> nn.Module:
        """Its network, untrained, for data of so many ``classes``."""
        return self.network.build()


class TrainedBaseline(Baseline):
    """A baseline that is trained: on the recipe's images, or on ``limit`` random ones of the whole data set, which may be more
    than ours is trained on."""

    trainer: ClassVar[str]  # ``module:function`` that trains it: (run, title, these settings, training images) -> the network
    trains: ClassVar[str | None] = None  # the name of the only network that this trains; None for any
    limit: Positive | None = None
    training: Optimisation

    @field_validator("network")
    @classmethod
    def _is_trained(cls, network: NetworkConfig) -> NetworkConfig:
        if cls.trains not in (None, network.network):
            raise ValueError(f"the network of this baseline is '{cls.trains}'; got '{network.network}'")
        return network


@BASELINES.register("untrained")
class Untrained(Baseline):
    """A purifier that needs no training: a classical transformation, a wrapper ``around`` a trained one, or SOAP once more.

    ``around``: ``student`` or another baseline, whose network the wrapper gets as its ``base``. A network ``soap`` around a
    trained SOAP is that one with other arguments, such as ``held: true``.
    """

    around: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        name = self.network.network
        if name == "soap" and self.around:
            return self
        if not _ready(name):
            valid = [one for one in NETWORKS if _ready(one)]
            raise ValueError(f"'{name}' needs training, or maps no images{nearest(name, valid)}")
        if inside := _not_ready(base := self.network.arguments.get("base")):
            raise ValueError(f"network.base: {inside} needs training, or is no network")
        wraps = issubclass(NETWORKS[name], Wrapper)
        if wraps and (self.around is None) == (base is None):
            raise ValueError(f"'{name}' wraps another purifier: give either around (such as student) or network.base")
        if not wraps and (self.around or base):
            raise ValueError(f"'{name}' wraps no other purifier; remove '{'around' if self.around else 'network.base'}'")
        return self


@BASELINES.register("pretrained")
class Pretrained(Baseline):
    """A trained purifier: the name of one that ships, or its folder. ``network`` is read from there."""

    source: Place

    @model_validator(mode="before")
    @classmethod
    def _read_network(cls, content: Any) -> Any:
        # A recipe in results has the network already, and its folder may be on another machine.
        if not isinstance(content, Mapping) or "network" in content or not isinstance(content.get("source"), str):
            return content
        try:
            described = describe(load_network(locate(content["source"])))
        except (MissingFileError, CheckpointError) as error:
            raise ValueError(f"source: {error}{nearest(content['source'], PURIFIERS)}") from error
        if getattr(NETWORKS[described["network"]], "output", "images") != "images":
            raise ValueError(f"source: '{content['source']}' is a classifier; expected a purifier")
        return {**content, "network": described}

    def build(self, classes: int) -> nn.Module:
        return load_network(locate(self.source))


@BASELINES.register("nrp")
class BaselineNRP(TrainedBaseline):
    """NRP (Naseer et al. 2020), trained on the recipe's images in front of the classifier to protect."""

    trainer = "purifiers.training.baselines:train_nrp"
    trains = "nrp"

    attack: Annotated[SSP, BeforeValidator(SSP.parse)]  # makes its training images from features of the classifier
    feature_layer: str | None = None  # the dotted name of the layer of these features; by default the logits
    critic_width: Positive = 64  # channels of the critic's first convolution
    training: TrainingNRP


@BASELINES.register("soap")
class BaselineSOAP(TrainedBaseline):
    """SOAP (Shi et al. 2021): it has a classifier of its own, which is attacked, and which it is measured in front of."""

    trainer = "purifiers.training.baselines:train_soap"
    trains = "soap"

    training: TrainingSOAP

    @field_validator("network")
    @classmethod
    def _has_classifier(cls, network: NetworkConfig) -> NetworkConfig:
        if network.arguments.get("classifier") is None:
            raise ValueError("SOAP trains its own classifier: give network.classifier, such as {network: resnet, depth: 20}")
        return network

    def build(self, classes: int) -> nn.Module:
        return self.network.build(classifier={**self.network.arguments["classifier"], "num_classes": classes})


def _ready(name: str) -> bool:
    """Whether the network ``name`` purifies without training, alone or around another."""
    return issubclass(NETWORKS[name], (Transformation, Shrink, Nothing, Wrapper))


def _not_ready(base: Any) -> str | None:
    """The part of a wrapper's ``base`` that needs training, or is no network."""
    if not isinstance(base, Mapping):
        return None if base is None else repr(base)
    name = base.get("network")
    return _not_ready(base.get("base")) if name in NETWORKS and _ready(str(name)) else f"'{name}'"


AnyBaseline = Annotated[SerializeAsAny[Baseline], BeforeValidator(Baseline.parse)]  # of any registered kind, or module:Name


def folder_of(title: str) -> str:
    """The folder of a baseline's training state."""
    return f"baseline-{folder_name(title)}"
