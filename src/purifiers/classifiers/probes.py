"""Short tests of a model: does it return logits, is it random, are its outputs probabilities, what is its gradient?"""

import torch
from torch import Tensor, nn

from purifiers.errors import InputError
from purifiers.registry import located
from purifiers.seeds import reproducible

RANDOM = 1e-4
"""Two passes of a deterministic model agree up to this share of the largest output; AutoAttack has the same number."""


def logits_of(name: str, model: nn.Module, images: Tensor, error: type[Exception] = InputError, finite: bool = True) -> Tensor:
    """The logits (N, classes) of ``images`` (N, C, H, W); raises ``error`` if the model fails, or returns no ``finite`` float32
    logits of at least two classes."""
    shape = tuple(images.shape)
    try:
        logits = model(images.clone())  # which it may change in place
    except error:
        raise
    except Exception as fault:
        other = {parameter.dtype for parameter in model.parameters()} - {images.dtype}
        hint = f"; its parameters are {other.pop()}: convert it with .float()" if other else ""
        hint = "; it was exported for images of that shape: see --set data.size" if "Guard failed" in str(fault) else hint
        raise error(f"{name} fails on images of shape {shape}: {located(fault)}{hint}") from fault
    if not isinstance(logits, Tensor):
        transformers = "pass the folder or hub name of a transformers model, or return .logits"
        hint = transformers if hasattr(logits, "logits") else "return the logits alone"
        raise error(f"{name} returns a {type(logits).__name__}, not a tensor of logits: {hint}")
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        got = f"for images of shape {shape} it returns shape {tuple(logits.shape)}"
        raise error(f"{name} must return logits (N, at least 2 classes); {got}")
    if logits.dtype != torch.float32:  # in half precision gradients vanish, and attacks look weak
        raise error(f"{name} returns {logits.dtype} logits; attacks need float32: convert them with .float()")
    if finite and not logits.isfinite().all():
        raise error(f"{name} returns logits that are NaN or infinite for images of shape {shape}")
    return logits


def relative_difference(outputs: Tensor, again: Tensor) -> Tensor:
    """The largest difference between two passes, (N, ...) each, as a share of the largest output; for each image, (N,)."""
    one, other = outputs.flatten(1), again.flatten(1)
    return (one - other).abs().amax(1) / one.abs().amax(1).clamp_min(1e-12)


def are_probabilities(outputs: Tensor) -> Tensor:
    """Which rows of ``outputs`` (N, classes) lie in [0,1] and sum to 1, bool (N,)."""
    return ((outputs >= 0) & (outputs <= 1)).all(1) & ((outputs.sum(1) - 1).abs() < 1e-5)


def is_random(model: nn.Module, images: Tensor) -> bool:
    """Do outputs of ``model`` for ``images`` (N, C, H, W) differ with the random state by more than rounding (``RANDOM``)?"""
    with torch.no_grad():
        outputs = []
        for seed in (0, 1):
            with reproducible(seed, images.device):
                outputs.append(model(images.clone()))  # which it may change in place
    return bool((relative_difference(*outputs).nan_to_num(0) > RANDOM).any())


def gradient_at(model: nn.Module, images: Tensor) -> Tensor:
    """The gradient of ``model``'s outputs, summed unevenly, at ``images`` (N, C, H, W); 0 if it passes none. An even sum
    would have none if the outputs are probabilities."""
    given = images.clone().requires_grad_(True)
    try:
        with torch.enable_grad(), reproducible(0, images.device):
            outputs = model(given.clone()).flatten(1)
            total = (outputs * torch.linspace(-1, 2, outputs.shape[1], device=outputs.device)).sum()
    except InputError:  # the view query
        return torch.zeros_like(images)
    except RuntimeError as error:
        if "requires grad" not in str(error):  # as of .numpy() without .detach()
            raise
        return torch.zeros_like(images)
    if not total.requires_grad:
        return torch.zeros_like(images)
    return torch.autograd.grad(total, given, allow_unused=True, materialize_grads=True)[0]
