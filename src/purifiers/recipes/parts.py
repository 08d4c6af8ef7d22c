"""The groups of keys that several parts of a recipe have."""

import inspect
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import nn

from purifiers.attacks.base import parse_fraction
from purifiers.data.datasets import DATASETS, refuse_unknown
from purifiers.data.labels import PREDICTED
from purifiers.errors import ConfigError
from purifiers.kinds import Group, faults
from purifiers.networks.network import channels_of
from purifiers.registry import NETWORKS, Registry, build_network
from purifiers.weights import absolute, anywhere

Positive = Annotated[int, Field(ge=1)]
Place = Annotated[str, AfterValidator(anywhere)]  # weights: a name, or a file or folder, whose path is made absolute


def checked(registry: Registry[Any], name: str) -> str:
    """``name``, which ``registry`` must have: raises a ValueError with the nearest name."""
    registry[name]
    return name


def labels_place(labels: str) -> str:
    """Where ``data.labels`` are: a file, whose path is made absolute; or the word for the classifier's predictions."""
    return labels if labels == PREDICTED else absolute(labels)


class Crops(Group):
    """``count`` random squares of each image, scaled to ``size`` pixels, with sides between the share ``smallest`` of the
    shorter side and all of it. A purifier that works at any size learns more in the same time from smaller images."""

    size: Positive
    count: Positive = 1
    smallest: float = Field(default=0.5, gt=0, le=1)


class Data(Group):
    """Which images. ``limit`` and ``test_limit`` take a random subset of the training and the test images. ``crops``: of the
    training images, instead of the whole; test images stay whole.

    ``labels``, ``classes``: of a folder of images, where labels come from: see :func:`purifiers.data.folder.load_folder`.
    """

    name: Annotated[str, AfterValidator(lambda name: checked(DATASETS, name))]
    path: Annotated[str, AfterValidator(absolute)] | None = None
    size: Positive | None = None
    labels: Annotated[str, AfterValidator(labels_place)] | None = None
    classes: Annotated[str, AfterValidator(absolute)] | None = None
    limit: Positive | None = None
    test_limit: Positive | None = None
    crops: Crops | None = None

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        refuse_unknown(self.name, [key for key, value in self.source().items() if value is not None])
        return self

    def source(self) -> dict[str, Any]:
        """The options of :func:`purifiers.data.load_images` and :func:`purifiers.data.placeholder`."""
        return self.model_dump(include={"path", "size", "labels", "classes"})


def _with_fractions(content: Any) -> Any:
    """Lengths as in attacks: 8/255 is a number."""
    if isinstance(content, Mapping):
        return {key: _with_fractions(value) for key, value in content.items()}
    return parse_fraction(content) if isinstance(content, str) and re.fullmatch(r"[\d. ]+/[\d. ]+", content) else content


class NetworkConfig(BaseModel):
    """A network's name in the registry and its constructor's arguments, all on one level."""

    model_config = ConfigDict(frozen=True, extra="allow")

    network: str

    _fractions = model_validator(mode="before")(_with_fractions)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The constructor's arguments."""
        return self.model_extra or {}

    def build(self, **others: Any) -> nn.Module:
        """The network, untrained; with ``others`` in place of, or beside, its arguments."""
        return build_network(self.network, {**self.arguments, **others})

    @model_validator(mode="after")
    def _buildable(self) -> "NetworkConfig":
        _check_network(self.network, json.dumps(self.model_extra, default=str))
        return self


@cache  # building a deep network takes a tenth of a second, and a recipe with variants has hundreds
def _check_network(name: str, arguments: str) -> None:
    """Raise ConfigError for a network of images that cannot be built of ``arguments``, JSON, of its annotated types."""
    # A wrapper's base and SOAP's classifier may come from elsewhere.
    parameters = inspect.signature(NETWORKS[name]).parameters
    parts = {"base": {"network": "nothing"}, "classifier": {"network": "resnet"}}
    filled = {part: network for part, network in parts.items() if part in parameters} | json.loads(arguments)
    for key in filter(parameters.get, filled):
        try:
            TypeAdapter(parameters[key].annotation).validate_json(json.dumps(filled[key]), strict=True)
        except ValidationError as error:
            raise ConfigError("; ".join(faults(error, key))) from None
        except (RuntimeError, NameError):  # pydantic's, for a network, or a type that only its module knows
            continue
    try:  # neither memory nor random numbers are spent on a check
        network = build_network(name, filled, "meta")
    except ConfigError:  # a constructor may read what it computes, which there has no values
        network = build_network(name, filled)
    if (channels_of(network) or 3) != 3:
        raise ConfigError("every data set has 3 channels (grey images become RGB)")


class Optimisation(Group):
    """How one network is trained.

    ``ema``: what the training gives is a moving average of its weights, of this decay in each step (0.995 to 0.999 are usual);
    0: the last ones.
    """

    epochs: Positive
    batch_size: Positive = 128
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "one_cycle"] = "constant"  # the latter: up and down to nothing (Smith and Topin 2018)
    ema: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = False  # random mirroring
    crop: int = Field(default=0, ge=0)  # random shifts by up to so many pixels


class OnPerturbed(Optimisation):
    """A training on perturbed images. The defaults are the paper's.

    ``strength_low`` and ``strength_high``: each perturbation is scaled by a factor drawn between them (clipped to [0,1]).
    ``clean_share``: with this probability an image comes without its perturbation.
    ``noise``: standard deviation, in [0,1] units, of Gaussian noise that is then added to every image (clipped to [0,1]).
    """

    strength_low: float = Field(default=1.0, ge=0)
    strength_high: float = Field(default=1.0, ge=0)
    clean_share: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.strength_low > self.strength_high:
            raise ValueError(f"strength_low {self.strength_low:g} is above strength_high {self.strength_high:g}")
        return self


def folder_name(title: str) -> str:
    """A title as the name of a folder: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
