"""What every attack is: a function (model, images, labels, seed) -> adversarial images, checked on both ends."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from torch import Tensor, nn

from purifiers.data.images import check_images
from purifiers.errors import AttackError, InputError

ROUNDING = 1e-6
"""How far float32 rounding may take a perturbation beyond epsilon (L-inf); L2 norms get ten times that."""

WITHOUT_GRADIENT = ("does not require grad", "not have been used in the graph")
"""What torch says where a gradient is asked for that does not exist."""


def parse_fraction(value: Any) -> Any:
    """A text such as ``8/255`` as a number; anything else as it is. Raises ValueError for another text."""
    if not isinstance(value, str):
        return value
    try:
        numerator, _, denominator = value.partition("/")
        return float(Fraction(numerator.strip()) / Fraction(denominator.strip() or 1))  # so that 0.8/255 is one too
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"'{value}' is not a number; write 0.1 or 8/255") from error


def show_fraction(value: float | None) -> str:
    """A length in [0,1] units as people write it: the shorter of ``8/255`` (whole grey levels only) and ``0.1``."""
    if value is None:
        return "-"
    levels = round(value * 255)
    fraction, decimal = f"{levels}/255", repr(value)
    return fraction if abs(value * 255 - levels) < 1e-9 and len(fraction) < len(decimal) else decimal


Length = Annotated[
    float,
    BeforeValidator(parse_fraction),
    Field(ge=0, allow_inf_nan=False),
    PlainSerializer(show_fraction, return_type=str, when_used="json"),
]
"""A distance in [0,1] units; recipes may write ``8/255``."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for parameters, for the duration; every module and parameter is restored."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in gradients:
            parameter.requires_grad_(required)


def import_foolbox() -> Any:
    """foolbox, which takes a second to load, and only attacks need."""
    # It imports GitPython, which refuses to load where git is not installed unless told to be quiet.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    return foolbox


class Attack(BaseModel, ABC):
    """An attack with its parameters; calling it attacks one batch.

    Subclasses are one file each and implement :meth:`perturb`. They know nothing of purifiers: what the attacker knows
    is decided by the model that is passed (see :mod:`purifiers.attacks.views`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    norm: Literal["linf", "l2"] = "linf"
    epsilon: Length | None = None

    @model_validator(mode="after")
    def _in_unit_range(self) -> Self:
        if self.norm == "linf" and (self.epsilon or 0) > 1:
            raise ValueError(f"epsilon is in [0,1] units: {self.epsilon:g} would be everything; write 8/255, not 8")
        return self

    @abstractmethod
    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Adversarial versions of ``images``; the model is frozen and inputs are checked already."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
        """Attack one batch.

        Args:
            model: images in [0,1] -> logits (N, classes); its modes and ``requires_grad`` are left as found.
            images: float32 (N, C, H, W), in [0,1].
            labels: int64 (N,), the true classes.
            seed: decides every random choice.

        Returns:
            float32, the shape of ``images``, in [0,1], within ``epsilon`` (+ 1e-6) of them in ``norm``.

        Raises:
            InputError: images or labels are not as above.
            AttackError: the attack's result is not as above, or it takes gradients and the model passes none to its images.
        """
        check_images(images)
        if images.dtype != torch.float32:
            raise InputError(f"attacks run in float32 (half precision breaks epsilon); got {images.dtype}")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise InputError(f"labels must be int64 ({len(images)},); got {labels.dtype} {tuple(labels.shape)}")
        if not len(images):
            return images.clone()
        with frozen(model), torch.autocast(images.device.type, enabled=False):
            try:
                adversarial = self.perturb(_Dense(model), images.detach().contiguous(), labels, seed).detach()
            except RuntimeError as error:
                if not any(said in str(error) for said in WITHOUT_GRADIENT):
                    raise
                raise AttackError(f"{self.kind} takes gradients, and the model passes none to its images") from error
        self.check_result(images, adversarial)
        return adversarial

    def check_result(self, images: Tensor, adversarial: Tensor) -> None:
        """Raise an AttackError unless ``adversarial`` is float32, the shape of ``images`` (float32), in [0,1], and within
        ``epsilon`` of them."""
        if adversarial.dtype != torch.float32 or adversarial.shape != images.shape:
            raise AttackError(f"{self.kind} returned {adversarial.dtype} {tuple(adversarial.shape)}")
        low, high = torch.stack(torch.aminmax(adversarial)).tolist()
        if not (low >= 0 and high <= 1):
            raise AttackError(f"{self.kind} returned pixels from {low:.6g} to {high:.6g}, outside [0,1]")
        if self.epsilon is not None:
            largest = distances(images, adversarial, self.norm).max().item()
            allowed = self.epsilon + (ROUNDING if self.norm == "linf" else 10 * ROUNDING)
            if not largest <= allowed:
                raise AttackError(
                    f"{self.kind} moved an image by {largest:.8g} ({self.norm}), beyond epsilon {self.epsilon:.8g}"
                )


class _Dense(nn.Module):
    """Images and gradients in the default memory layout on both sides of a model; libraries flatten them with view(). A
    gradient that is not finite is zero: one such pixel must not spoil its image, let alone the attack."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous()
        if images.requires_grad:
            images = images.view_as(images)
            images.register_hook(lambda gradient: gradient.contiguous().nan_to_num(0, 0, 0))
        return self.model(images)


def distances(images: Tensor, others: Tensor, norm: Literal["linf", "l2"]) -> Tensor:
    """Distance of each image to its counterpart, (N,), in [0,1] units."""
    difference = (others - images).flatten(1)
    return difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)
