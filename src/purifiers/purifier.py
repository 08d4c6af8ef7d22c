"""The two classes that a user holds: a purifier, and a classifier with a purifier in front."""

import math
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from purifiers import weights
from purifiers.errors import CheckpointError, InputError, MissingFileError
from purifiers.naming import nearest
from purifiers.registry import CONFIG_FILE, PURIFIERS, load_network, save_network

TOLERANCE = 1e-4
"""How far rounding may take a pixel out of [0,1] before an image counts as out of range."""


def check_images(images: Tensor, *, values: bool = True) -> None:
    """Refuse a tensor that is not a batch of images: float32 (or half, for a half model), (N, C, H, W), in [0,1].

    Args:
        images: what the user passed.
        values: look at the values too (range, NaN, infinity); this waits for the device.

    Raises:
        InputError: says which of type, shape, dtype, range or NaN is wrong, and how to mend it.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch.Tensor; got {type(images).__name__}")
    if images.ndim != 4:
        hint = "; add the batch dimension with images.unsqueeze(0)" if images.ndim == 3 else ""
        raise InputError(f"images must have shape (N, C, H, W); got {tuple(images.shape)}{hint}")
    if images.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        hint = "; divide by 255" if images.dtype == torch.uint8 else "; convert with .float()"
        raise InputError(f"images must be float32 in [0,1]; got {images.dtype}{hint}")
    if values and images.numel():
        low, high = torch.stack(torch.aminmax(images.detach())).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError("images contain NaN or infinite values")
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            hint = "divide by 255" if low >= 0 and high > 2 else "do not normalise: that belongs inside the classifier"
            raise InputError(f"images must be in [0,1]; got values from {low:.4g} to {high:.4g}; {hint}")


class Purifier(nn.Module):
    """Cleans images before a classifier sees them: (N, C, H, W), float32, in [0,1] -> the same shape, dtype and range.

    In evaluation mode from the start; differentiable; moves with ``.to(device)`` like any module.

    Args:
        network: a module that maps images in [0,1] to images in [0,1], for example :class:`purifiers.networks.CAE`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Purify a batch.

        Raises:
            InputError: ``images`` have the wrong type, shape, dtype, number of channels, range or device, or hold NaN.
        """
        check_images(images, values=False)
        channels = getattr(self.network, "config", {}).get("channels")
        if channels is not None and images.shape[1] != channels:
            hint = "; put the channels first with .permute(0, 3, 1, 2)" if images.shape[3] == channels else ""
            raise InputError(f"this purifier takes images of {channels} channels; got shape {tuple(images.shape)}{hint}")
        weight = next(self.parameters(), None)
        if weight is not None and weight.dtype != images.dtype and not torch.is_autocast_enabled(images.device.type):
            raise InputError(f"images are {images.dtype}, the purifier {weight.dtype}; convert one with .to(dtype)")
        if weight is not None and weight.device != images.device:
            raise InputError(f"images are on {images.device}, the purifier on {weight.device}; move one with .to(device)")
        # While a graph is traced for export or compilation there are no values to look at.
        if not torch.compiler.is_compiling():
            check_images(images)
        return self.network(images) if images.numel() else images.clone()

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> Self:
        """Load a purifier that comes with the library, or one that was trained or saved with it.

        Args:
            name_or_folder: a name in :data:`purifiers.weights.PURIFIERS`, such as ``cifar10``, or a folder written by
                :meth:`save_pretrained` or by ``purifiers train --output``.

        Raises:
            MissingFileError: neither such a name nor such a folder.
            CheckpointError: the files are damaged, were written by a newer version, or hold no purifier.
        """
        folder = weights.locate(name_or_folder)
        if not (folder / CONFIG_FILE).is_file():
            raise MissingFileError(
                f"no purifier at '{name_or_folder}'{nearest(str(name_or_folder), weights.PURIFIERS)}: give a name "
                f"({', '.join(weights.PURIFIERS)}) or a folder that holds {CONFIG_FILE} and model.safetensors, for example "
                "the --output of 'purifiers train'"
            )
        network = load_network(folder)
        if not isinstance(network, tuple(PURIFIERS.values())):
            kind = type(network).__name__.lower()
            raise CheckpointError(f"{folder} holds a '{kind}', not a purifier; teachers and students of a run are purifiers")
        return cls(network)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` to ``folder``, which is made if missing."""
        save_network(Path(folder), self.network)


class PurifiedClassifier(nn.Module):
    """A frozen classifier behind a purifier: images in [0,1] -> the classifier's logits of the purified images.

    Differentiable end to end, so an attack on this module is an attack by somebody who knows the purifier.
    The classifier stays in evaluation mode whatever mode the whole is put in, so that no running statistics change;
    both parts start in it.

    Args:
        purifier: images -> images.
        classifier: images in [0,1] -> logits (N, classes), with its normalisation inside. Its parameters are left as they
            are: give an optimiser those of the purifier alone.

    Raises:
        InputError: one of them is not a module, or they are in the wrong order.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        for name, part in (("purifier", purifier), ("classifier", classifier)):
            if not isinstance(part, nn.Module):
                raise InputError(f"the {name} must be a torch.nn.Module; got {type(part).__name__}")
        if isinstance(classifier, Purifier):
            raise InputError("the classifier is a Purifier: the order is PurifiedClassifier(purifier, classifier)")
        self.purifier = purifier
        self.classifier = classifier
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Put the purifier into training mode; never the classifier."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of ``images`` (N, C, H, W), float32, in [0,1]; raises as :class:`Purifier` does."""
        return self.classifier(self.purifier(images))
