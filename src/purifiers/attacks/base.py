"""The base class of attacks: functions (model, images, labels, seed) -> adversarial images, with checks of both ends."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, SerializeAsAny, ValidationError, model_validator
from torch import Tensor, nn

from purifiers.classifiers.load import check_form
from purifiers.classifiers.probes import logits_of
from purifiers.data.images import check_images
from purifiers.device import autocast, float32_on_cpu, in_parts
from purifiers.errors import AttackError, ConfigError, InputError
from purifiers.gradient_steps import Norm
from purifiers.kinds import Kind, faults
from purifiers.purifier import in_mode
from purifiers.registry import Registry
from purifiers.seeds import generator_for, seed_for

LOGGER = "auto-attack"  # pyautoattack's, for suspicions about a defence; purifiers.attacks.generate keeps the warnings
ROUNDING = 1e-6  # how far float32 rounding may take a perturbation beyond epsilon (L-inf); L2 norms get ten times that


def parse_fraction(value: Any) -> Any:
    """A text such as ``8/255`` as a number; anything else as it is. Raises ValueError for another text."""
    if not isinstance(value, str):
        return value
    try:
        numerator, *denominator = map(float, value.split("/", 1))
        return numerator / denominator[0] if denominator else numerator
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"'{value}' is not a number; write 0.1 or 8/255") from error


def show_fraction(value: float | None) -> str:
    """A length in [0,1] units, human-readable: the shorter of ``8/255`` (whole grey levels only) and ``0.1``."""
    if value is None:
        return "-"
    levels = round(value * 255)
    fraction, decimal = f"{levels}/255", repr(value)
    return fraction if abs(value * 255 - levels) < 1e-9 and len(fraction) < len(decimal) else decimal


Length = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0), PlainSerializer(show_fraction, when_used="json")]
"""A distance in [0,1] units; recipes may write ``8/255``."""


def share_of_epsilon(divisor: int) -> Any:
    """The default of a step size: epsilon divided by ``divisor``."""
    return Field(default_factory=lambda known: float(known.get("epsilon", 0.0)) / divisor)


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for parameters, for the duration; every module and parameter is restored."""
    together = nn.ModuleList(models)
    trainable = [parameter for parameter in together.parameters() if parameter.requires_grad]
    try:
        with in_mode(together.requires_grad_(False), False):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


ATTACKS: Registry[type["Attack"]] = Registry("attack", "purifiers.attacks")  # the values of an attack's ``kind``
Passes = tuple[float, float, float]
"""A share of the images; how often each of them goes through the model with a gradient, and without."""
Targeting = Literal["random", "least_likely", "second"]
"""How targets are chosen: at random by the seed, the least likely class, or the most likely of the wrong ones."""


class Attack(Kind, ABC):
    """An attack with its parameters; calling it attacks one batch.

    Subclasses implement :meth:`perturb` and know nothing of purifiers: the model that is passed decides what the attacker
    knows (see :mod:`purifiers.attacks.views`).

    ``epsilon``: in [0,1] units of ``norm``; None for an attack that minimises the distance.
    ``restarts``: the number of runs, each with its own seed, on the images where those before had no success.
    ``weight``: in a recipe's ``training_attacks``, how many shares of the images it takes.

    Attributes:
        needs_gradients: it differentiates the model, which the view ``query`` does not allow.
        draws: it draws random numbers, so that a restart is another run.
        uses_labels: the model's outputs are logits of the labels' classes.
        shown_as: the first word of its title; None for the name of its class.
    """

    registry: ClassVar[Registry[Any]] = ATTACKS
    needs_gradients: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    uses_labels: ClassVar[bool] = True
    shown_as: ClassVar[str | None] = None

    norm: Norm = "linf"
    epsilon: Length | None = None
    restarts: int = Field(default=1, ge=1)
    weight: int = Field(default=1, ge=1)

    if not TYPE_CHECKING:  # which would hide the parameters

        def __init__(self, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError("; ".join(faults(error, type(self).__name__))) from error

    @model_validator(mode="after")
    def _in_unit_range(self) -> Self:
        if self.norm == "linf" and (self.epsilon or 0) > 1:
            raise ValueError(f"epsilon is in [0,1] units: {self.epsilon:g} would be everything; write 8/255, not 8")
        if self.restarts > 1 and not self.draws:
            raise ValueError("restarts of this attack would all be the same, as it draws no random numbers; take pgd")
        return self

    def passes(self, withstanding: float) -> list[Passes]:
        """What it costs where a share ``withstanding`` of the images cannot be broken, for a forecast: shares of the images,
        and how often each of these goes through the model, with a gradient and without."""
        steps = float(getattr(self, "num_steps", 1))
        return [(1.0, steps, 0.0), (withstanding, steps * (self.restarts - 1), 0.0)]

    @property
    def title(self) -> str:
        """What tables call it, by its settings: ``PGD-20, 8/255`` takes 20 steps within L-inf 8/255; L2 is named."""
        ball = [] if self.epsilon is None else [("L2 " if self.norm == "l2" else "") + show_fraction(self.epsilon)]
        return ", ".join([*self._words(), *ball])

    def _words(self) -> list[str]:
        """The title without the ball."""
        name, steps = self.shown_as or type(self).__name__, getattr(self, "num_steps", None)
        words = [name if steps is None else f"{name}-{steps}"]
        words += ["targeted"] if getattr(self, "targeted", False) else []
        return words + ([f"{self.restarts} restarts"] if self.restarts > 1 else [])

    @abstractmethod
    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Adversarial versions of ``images``; the model is frozen and inputs are checked already. ``labels`` are the true
        classes, or, of a targeted attack, the classes to reach."""

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, seed: int = 0, *, targets: Tensor | None = None
    ) -> Tensor:
        """Attack one batch.

        Args:
            model: images in [0,1] -> logits (N, classes); its modes and ``requires_grad`` are left as found.
            images: float32 (N, C, H, W), in [0,1].
            labels: int64 (N,), the true classes.
            seed: decides every random choice.
            targets: int64 (N,), the classes to reach, of a targeted attack; by default it chooses them.

        Returns:
            float32, the shape of ``images``, in [0,1], within ``epsilon`` (+ 1e-6) of them in ``norm``.

        Raises:
            InputError, ConfigError: model, images, labels or targets are not as above.
            AttackError: the attack's result is not as above, no logit is finite, or the attack takes gradients and gets none.
        """
        check_form(model, "model")
        check_images(images)
        if images.dtype != torch.float32:
            raise InputError(f"attacks run in float32 (half precision breaks epsilon); got {images.dtype}: use .float()")
        check_labels(labels, len(images))
        if not len(images):
            return images.clone()
        exact = autocast(images.device, "32-true")
        # An attack needs gradients in whatever mode the caller is.
        with float32_on_cpu(), torch.inference_mode(False), torch.enable_grad(), frozen(model), exact:
            images = images.detach().clamp(0, 1).contiguous()  # rounding may have left them a little outside
            labels = labels.clone()
            classes = {"labels": labels} if self.uses_labels else {}
            dense = _Dense(model, self.kind, images, classes | ({} if targets is None else {"targets": targets}))
            aims = self._aims(dense, images, labels, seed, targets)
            adversarial = self.perturb(dense, images, aims, seed).detach()
            for restart in range(1, self.restarts):
                with torch.no_grad():
                    predicted = dense(adversarial).argmax(1)
                left = (predicted == labels if aims is labels else predicted != aims).nonzero().flatten()
                if not len(left):
                    break
                again = self.perturb(dense, images[left], aims[left], seed_for(seed, "restart", restart)).detach()
                adversarial = adversarial.index_copy(0, left, again)
        self.check_result(images, adversarial)
        return adversarial

    def _aims(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int, targets: Tensor | None) -> Tensor:
        """The classes that are passed to :meth:`perturb`."""
        choice: Targeting | bool = getattr(self, "targeted", False)
        if targets is not None:
            if not choice:
                raise InputError(f"targets are for targeted attacks; make it one, such as {type(self).__name__}(targeted=True)")
            check_labels(targets, len(images), "targets")
            return targets
        if not choice:
            return labels
        with torch.no_grad():
            logits = model(images).scatter(1, labels[:, None], -torch.inf)  # the true class is never a target
        if choice == "second":
            return logits.argmax(1)
        if choice == "least_likely":
            return logits.scatter(1, labels[:, None], torch.inf).argmin(1)
        classes = logits.shape[1]
        drawn = torch.randint(1, classes, (len(labels),), generator=generator_for(seed, "targets")).to(labels.device)
        return (labels + drawn) % classes

    def check_result(self, images: Tensor, adversarial: Tensor) -> None:
        """Raise an AttackError unless ``adversarial`` is as :meth:`__call__` says of ``images`` (float32)."""
        if adversarial.dtype != torch.float32 or adversarial.shape != images.shape:
            raise AttackError(f"{self.kind} returned {adversarial.dtype} {tuple(adversarial.shape)}")
        low, high = torch.stack(torch.aminmax(adversarial)).tolist()
        if not (low >= 0 and high <= 1):
            raise AttackError(f"{self.kind} returned pixels from {low:.6g} to {high:.6g}, outside [0,1]")
        if self.epsilon is not None:
            moved = distances(images, adversarial, self.norm).max().item()
            allowed = self.epsilon + (ROUNDING if self.norm == "linf" else 10 * ROUNDING)
            if not moved <= allowed:
                raise AttackError(f"{self.kind} moved an image by {moved:.8g} ({self.norm}), beyond epsilon {self.epsilon:.8g}")


class Around(nn.Module):
    """Base of modules around a ``model``, in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()


class _Dense(Around):
    """Images and gradients in the default memory layout on both sides of a model; libraries flatten them with view(). The model
    gets a copy, which it may change in place. A gradient that is not finite becomes zero: one such pixel must not spoil its
    image. The first outputs are checked, and that ``classes``, labels or targets by name, are classes of the model. A warning
    is logged if the first gradient is zero: the attack then hardly moves."""

    def __init__(self, model: nn.Module, attack: str, images: Tensor, classes: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self.attack, self.images, self.unchecked, self.untried = attack, images, classes, True

    def forward(self, images: Tensor) -> Tensor:
        wanted = images.requires_grad and torch.is_grad_enabled()
        images = images.clone(memory_format=torch.contiguous_format)
        if wanted:
            images.register_hook(self._finite)
        logits: Tensor = (
            logits_of("the model", self.model, images, finite=False) if self.unchecked else in_parts(self.model, images)
        )
        if self.unchecked and not (logits.isfinite().any() or self.model(self.images.clone()).isfinite().any()):
            raise AttackError("the model's logits are NaN or infinite (if it is in training: take a smaller learning rate)")
        if wanted and not logits.requires_grad:
            raise AttackError(f"{self.attack} takes gradients, and the model passes none to its images")
        for name, classes in self.unchecked.items():
            low, high = torch.stack(torch.aminmax(classes)).tolist()
            if low < 0 or high >= logits.shape[1]:
                raise InputError(f"{name} go from {low} to {high}, the model has {logits.shape[1]} classes")
        self.unchecked = {}
        return logits

    def _finite(self, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().nan_to_num(0, 0, 0)
        if self.untried and not gradient.any():
            advice = "the images may be right only because the attack cannot see where to go; see the view bpda"
            logging.getLogger(LOGGER).warning(f"the gradient is zero at all images of a batch: {advice}")
        self.untried = False
        return gradient


def check_labels(labels: Tensor, count: int, name: str = "labels") -> None:
    """Raise an InputError, which calls them ``name``, unless ``labels`` are int64 (``count``,)."""
    if not isinstance(labels, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, int64 ({count},); got a {type(labels).__name__}: use torch.as_tensor")
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise InputError(f"{name} must be int64 ({count},); got {labels.dtype} {tuple(labels.shape)}")


def distances(images: Tensor, others: Tensor, norm: Norm) -> Tensor:
    """Distance of each image to its counterpart, (N,), in [0,1] units."""
    difference = (others - images).flatten(1)
    return difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)


def titles(attacks: Mapping[str, Attack]) -> dict[str, str]:
    """The title of each attack, by its name in a recipe, which follows in brackets where an earlier one has the same title."""
    found: dict[str, str] = {}
    for name, attack in attacks.items():
        found[name] = f"{attack.title} ({name})" if attack.title in found.values() else attack.title
    return found


AnyAttack = Annotated[SerializeAsAny[Attack], BeforeValidator(Attack.parse)]  # of any registered kind, or of ``module:Name``
