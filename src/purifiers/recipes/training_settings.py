"""The groups of a recipe that describe trainings: of classifiers, teachers and students."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from purifiers.attacks import AnyAttack
from purifiers.errors import nearest
from purifiers.kinds import Group
from purifiers.recipes.parts import NetworkConfig, OnPerturbed, Optimisation, Place, Positive, labels_place
from purifiers.registry import NETWORKS
from purifiers.weights import absolute, anywhere

Outputs = Literal["true_class", "largest", "all", "probabilities"]
"""What the classifier's "outputs" in equation 2 are: see :func:`purifiers.training.losses.at_teacher_loss`."""
SoftmaxOver = Literal["all", "colours"]
"""Over what g in equation 5 is a softmax: see :func:`purifiers.training.losses.distillation_loss`."""
STARTS = ("scratch", "teacher_at")  # a student's start, besides the name or folder of a purifier
PLACES: Mapping[str, Callable[[str], str]] = {
    "source": anywhere,
    "start": lambda start: start if start in STARTS else anywhere(start),
    "labels": labels_place,
    **dict.fromkeys(("path", "classes"), absolute),
}
"""Keys whose values are files or folders, and the functions that make them absolute."""


def _purifying(network: NetworkConfig) -> NetworkConfig:
    if not getattr(NETWORKS[network.network], "trainable", False):
        valid = [name for name, one in NETWORKS.items() if getattr(one, "trainable", False)]
        raise ValueError(f"'{network.network}' cannot be trained as a purifier{nearest(network.network, valid)}")
    return network


PurifierConfig = Annotated[NetworkConfig, AfterValidator(_purifying)]


class HeldOut(Group):
    """Early stopping: so many training images, drawn at random, are kept apart and attacked after each epoch. The training
    returns the weights of the epoch in which most of them were still right."""

    images: Positive = 500
    attack: AnyAttack


class Supervised(Optimisation):
    """The training of a classifier, or of a purifier in front of one, with labels.

    ``attack``: adversarial training: in each step the network in training is attacked, with the classifier behind it if it has
    one (view ``full``), and learns from the result. None: it learns from the images as they come.
    ``label_smoothing``: of every cross-entropy: the share of the target that is spread evenly over all classes.
    ``trades``: in place of the cross-entropy on adversarial images, cross-entropy(clean) + trades * KL(clean || adversarial)
    (Zhang et al. 2019, equation 5; the attack still climbs the cross-entropy). 0: none.
    ``weight_perturbation``: adversarial weight perturbation (Wu et al. 2020; 0.005 there): gradients are taken where each layer
    has moved by this share of its norm towards a higher loss. It costs another step. 0: none.
    ``held_out``: against robust overfitting (Rice et al. 2020), and catastrophic overfitting of one-step attacks (Wong et al.
    2020; a warning is printed).
    """

    attack: AnyAttack | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    trades: float = Field(default=0.0, ge=0)
    weight_perturbation: float = Field(default=0.0, ge=0)
    held_out: HeldOut | None = None

    @model_validator(mode="after")
    def _under_attack(self) -> Self:
        if self.held_out is not None and self.attack is None:
            raise ValueError("held_out is for adversarial training: set attack too")
        return self


GUIDANCE = ("classification_weight", "logits_weight", "features_weight")
"""Keys of :class:`OnAttacked` with which the classifier guides a purifier."""


class OnAttacked(OnPerturbed, Supervised):
    """A training on adversarial images with guidance by C, the frozen classifiers: the one to protect and its companions, each
    on its share of a batch.

    ``attack`` replaces the recipe's ``training_attacks``, which know C alone.
    ``classification_weight``, ``logits_weight``: added to the loss are cross-entropy of C on the purified image, and the mean
    absolute difference of C's logits on the purified and on the original image.
    ``features_weight``: that of the outputs of ``feature_layer``, the dotted name of a layer of C.
    ``guide_blur``, ``guide_shift``: for the losses C is shown images blurred, by a Gaussian of a standard deviation of up to so
    many pixels, and shifted, by up to so many, the purified and the original alike. What survives both is not a fine pattern
    that C alone can read: other classifiers recognise it too. Attacks see the image as it is.
    """

    classification_weight: float = Field(default=0.0, ge=0)
    logits_weight: float = Field(default=0.0, ge=0)
    features_weight: float = Field(default=0.0, ge=0)
    feature_layer: str | None = None
    guide_blur: float = Field(default=0.0, ge=0, le=4)
    guide_shift: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _guided(self) -> Self:
        if bool(self.features_weight) != (self.feature_layer is not None):
            raise ValueError("features_weight and feature_layer, the dotted name of a layer such as layer3, go together")
        for key in ("trades", "label_smoothing"):
            if getattr(self, key) and not self.classification_weight:
                raise ValueError(f"{key} is a part of the classification, and classification_weight is 0")
        for key in ("guide_blur", "guide_shift"):
            if getattr(self, key) and not any(getattr(self, one, 0) for one in (*GUIDANCE, "adversarial_weight")):
                raise ValueError(f"{key} is for what the classifiers are shown, and no weight of a loss asks them")
        if self.trades and self.clean_share == 1:
            raise ValueError("trades compares clean with adversarial images, and clean_share is 1")
        return self


class TeacherNT(Optimisation):
    """Equation 3. ``epochs`` may be 0 where the student learns from teacher AT alone, and with a residual output, where the
    untrained network is the identity, the optimum."""

    epochs: int = Field(ge=0)


class TeacherAT(OnAttacked):
    """Equation 2. The weights of its two terms are 1 in the paper.

    ``adversarial_outputs``: what the classifier's "outputs" are: the logit of the true class, or, without labels, the
    largest logit, all logits or all probabilities.
    ``start``: a purifier of the same structure, by its shipped name or folder. None: random weights, or those of the group
    ``latent``. With ``epochs`` of 0 the start is the teacher.
    """

    epochs: int = Field(ge=0)
    start: Place | None = None
    reconstruction_weight: float = Field(default=1.0, ge=0)
    adversarial_weight: float = Field(default=1.0, ge=0)
    adversarial_outputs: Outputs = "true_class"

    @model_validator(mode="after")
    def _trained(self) -> Self:
        weights = ("reconstruction_weight", "adversarial_weight", *GUIDANCE)
        if self.epochs and not any(getattr(self, weight) for weight in weights):
            raise ValueError(f"all weights of the loss are 0 ({', '.join(weights)}): there is nothing to learn")
        return self


class Latent(Group):
    """Before the teachers: a latent that withstands attacks, from which teacher AT starts. The purifier may have neither skips
    nor a residual output, around which a perturbation would pass.

    ``encoder``: trained as a classifier, with a linear layer on the mean of its latent. This layer is then dropped, but for a
    purifier with ``classes``.
    ``decoder``: trained on that encoder, now frozen, with the losses of teacher AT.
    """

    encoder: Supervised
    decoder: TeacherAT

    @field_validator("encoder")
    @classmethod
    def _attacked(cls, encoder: Supervised) -> Supervised:
        if encoder.attack is None:
            raise ValueError("it needs an attack, as only a latent that withstands attacks helps")
        return encoder


class Student(OnAttacked):
    """Equations 4 to 6. ``beta`` and ``gamma`` weigh reconstruction and distillation (0.5 each in the paper).

    ``nt_teacher_input``: equation 5 feeds the adversarial image to both teachers; the text says that NT is given pure
    images. The equation is the default.
    ``softmax_over``: g in equation 5 is a softmax over all values of an image, or over the colours of each pixel.
    ``teachers``: of the recipe's student; teacher AT alone is for one that is to copy a purifier.
    ``teacher_once``: teacher AT purifies every adversarial example once, before the first step, and its correction is scaled
    with the perturbation: each step saves a pass of the teacher, which is most of the time where the student is small.
    ``guided_share``: of each batch, the part that goes through the classifiers, at least one image of each: with a small
    student, a step through a large classifier takes most of the time.
    ``network``: its own, usually smaller than the teachers'; by default it is built as they are, by the recipe's ``purifier``.
    ``start``: from random weights, as in the paper (``scratch``), from those of teacher AT, which then has the same structure
    (``teacher_at``), or from those of another purifier that has, by its shipped name or folder. With ``epochs`` of 0 the start
    is the student.
    """

    epochs: int = Field(ge=0)
    teachers: tuple[Literal["AT", "NT"], ...] = ("AT", "NT")
    teacher_once: bool = False
    guided_share: float = Field(default=1.0, gt=0, le=1)
    network: PurifierConfig | None = None
    start: str = STARTS[0]
    beta: float = Field(default=0.5, ge=0)
    gamma: float = Field(default=0.5, ge=0)
    nt_teacher_input: Literal["adversarial", "clean"] = "adversarial"
    softmax_over: SoftmaxOver = "all"

    _absolute = field_validator("start")(PLACES["start"])

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.teachers:
            raise ValueError("teachers is empty: name AT, NT or both; gamma of 0 is a training without them")
        if not self.epochs and self.start == "scratch":
            raise ValueError("epochs is 0, and start is scratch: name the purifier that the student is, as start")
        if not (self.beta or self.gamma or any(getattr(self, weight) for weight in GUIDANCE)):
            raise ValueError("all weights of the loss are 0, beta and gamma too: there is nothing to learn")
        if self.teacher_once and (self.attack is not None or self.noise):
            raise ValueError("teacher_once: an attack or noise makes new images in every step; remove it, or teacher_once")
        if self.trades and self.guided_share < 1:
            raise ValueError("trades needs whole batches: set guided_share to 1")
        if self.network is not None and self.start == "teacher_at":
            raise ValueError("start is teacher_at, which has another network: remove network, or start from scratch")
        return self
