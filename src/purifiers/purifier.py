"""The two main classes: a purifier, and a classifier behind a purifier."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor, nn

from purifiers import hub, weights
from purifiers.data.images import DTYPES, check_images
from purifiers.device import find_device
from purifiers.errors import CheckpointError, InputError, MissingFileError, PurifiersError, nearest
from purifiers.networks.inference import Optimised
from purifiers.networks.network import channels_of
from purifiers.registry import CONFIG_FILE, describe, fingerprint, load_network, place, save_network
from purifiers.storage import write_text


class Purifier(nn.Module):
    """Cleans images before a classifier sees them: (N, C, H, W), float32, in [0,1] -> the same shape, dtype and range.

    In evaluation mode from the start; differentiable; moves with ``.to(device)`` like any module.

    Args:
        network: any module that maps images in [0,1] to such; a :class:`purifiers.networks.Network` can be saved.
        validate: check the values of each batch (range, NaN) too, which waits for the device.
    """

    def __init__(self, network: nn.Module, *, validate: bool = True) -> None:
        super().__init__()
        self.network = network
        self.validate = validate
        self._card = ("", "")  # the fingerprint of the weights that it describes, and its text
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Purify a batch; raises InputError for the wrong type, shape, dtype, number of channels, range or device, or NaN."""
        check_images(images, values=False)
        channels = channels_of(self.network)
        if channels is not None and images.shape[1] != channels:
            hint = "; put the channels first with .permute(0, 3, 1, 2)" if images.shape[3] == channels else ""
            raise InputError(f"this purifier takes images of {channels} channels; got shape {tuple(images.shape)}{hint}")
        weight = next(self.parameters(), None)
        kind = images.device.type  # "meta" has no autocast
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if weight is not None and weight.dtype != images.dtype and not autocast:
            hint = "convert the purifier with .float()" if images.dtype == torch.float32 else "convert one with .to(dtype)"
            raise InputError(f"images are {images.dtype}, the purifier {weight.dtype}; {hint}")
        if weight is not None and weight.device != images.device:
            raise InputError(f"images are on {images.device}, the purifier on {weight.device}; move one with .to(device)")
        # A graph that is traced for export or compilation has no values to check.
        if self.validate and not torch.compiler.is_compiling():
            check_images(images)
        return self.network(images) if images.numel() else images.clone()

    def placed(self, device: torch.device | str) -> Self:
        """This purifier on ``device`` for inference: no gradients for its parameters, in the fastest memory layout there."""
        place(self.network, device).requires_grad_(False)
        return self

    def optimize(self, images: Tensor | None = None) -> "Purifier":
        """A copy for inference on this device and machine: the same images (to 1e-4), in less time; values are not checked.

        See :class:`purifiers.networks.inference.Optimised`. It passes gradients to its images as this one does, and cannot be
        saved. Install ``purifiers[openvino]`` for most of the gain on a CPU.

        Args:
            images: a typical batch, (N, C, H, W), in [0,1]; the fastest way on it, of those that are installed, is taken.

        Raises:
            InputError: ``images`` are not as above.
        """
        if images is not None:
            self(images[:1] if isinstance(images, Tensor) and images.ndim == 4 else images)  # which checks them
        return Purifier(Optimised(self.network, images), validate=False)

    @property
    def card(self) -> str | None:
        """The model card that it was loaded with, in Markdown; None if there was none, or if the weights changed since."""
        of, card = self._card
        return card if of == fingerprint(self.network) else None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        validate: bool = True,
        **download: Any,
    ) -> Self:
        """Load a trained purifier, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a name in :data:`purifiers.weights.PURIFIERS`, such as ``cifar10``; a folder written
                by :meth:`save_pretrained` or by ``purifiers train --output``; or, where there is no such folder, ``owner/name``
                on the Hugging Face hub (``pip install 'purifiers[hub]'``).
            device: where to put it: cpu, cuda, cuda:1, mps, or auto for the best there is.
            dtype: float32, float16 or bfloat16: of its weights, and of the images that it then takes.
            validate: see :class:`Purifier`.
            download: for the hub, such as ``revision``; see ``huggingface_hub.snapshot_download``.

        Raises:
            MissingFileError: neither such a name nor such a folder, and nothing on the hub or no way there.
            CheckpointError: the files are damaged, were written by a newer version, or hold no purifier.
            ConfigError: there is no such device; or it is on the hub, and huggingface_hub is not installed.
        """
        name = pretrained_model_name_or_path
        folder = hub.download(str(name), **download) if hub.is_repository(name) else weights.locate(name)
        if not (folder / CONFIG_FILE).is_file():
            others = "or give a folder, such as the --output of 'purifiers train', or owner/name on the hub"
            raise MissingFileError(f"no purifier at '{name}'{nearest(str(name), weights.PURIFIERS)} ({others})")
        network = load_network(folder)
        if getattr(network, "output", "images") != "images":
            raise CheckpointError(f"{folder} holds a {type(network).__name__}, a classifier; expected a purifier")
        purifier = cls(network, validate=validate)
        if (card := hub.card_in(folder)) is not None:
            purifier._card = (fingerprint(network), card)
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype!r}")
        return purifier.to(device=None if device is None else find_device(str(device)), dtype=dtype)

    def save_pretrained(self, save_directory: str | Path, *, card: str | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card, ``README.md``, to a folder, which is made if missing.

        Args:
            save_directory: the folder. A card that is there already is kept, unless it was written for other weights.
            card: in Markdown with the hub's front matter; by default that of :attr:`card`, else a simple one.

        Raises:
            InputError: its network does not keep its constructor's arguments, so that it could not be loaded again.
        """
        folder = Path(save_directory)
        there = folder / hub.CARD_FILE
        kept = card is None and there.is_file()
        if kept:
            card_there, before = hub.card_in(folder), None
            with suppress(PurifiersError):
                before = Purifier(load_network(folder))
            simple = before and before._simple_card(folder.resolve().name)
            if "model-index" in hub.metadata(card_there) or card_there == simple:  # else it is the user's
                kept = before is not None and fingerprint(before.network) == fingerprint(self.network)
        save_network(folder, self.network)
        if not kept:
            write_text(there, card or self.card or self._simple_card(folder.resolve().name))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Push a purifier",
        create_pr: bool = False,
    ) -> str:
        """Push what :meth:`save_pretrained` writes to the Hugging Face hub; ``from_pretrained(repo_id)`` loads it. Returns the
        commit's URL.

        Args:
            repo_id: ``owner/name``; made if missing.
            card: see :meth:`save_pretrained`.
            private: whether a new repository is.
            token: by default that of ``hf auth login``.
            commit_message, create_pr: of the one commit, which may be a pull request.

        Raises:
            ConfigError: huggingface_hub is not installed (``pip install 'purifiers[hub]'``).
            InputError: the hub refused it, for example without a token; or see :meth:`save_pretrained`.
        """
        card = card or (hub.addressed(self.card, repo_id) if self.card else self._simple_card(repo_id))
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card)
            return hub.upload(Path(folder), repo_id, private, token, commit_message=commit_message, create_pr=create_pr)

    def _simple_card(self, name: str) -> str:
        return hub.simple_card(name, describe(self.network), sum(parameter.numel() for parameter in self.parameters()))


class PurifiedClassifier(nn.Module):
    """A frozen classifier behind a purifier: images in [0,1] -> the classifier's logits of the purified images.

    Differentiable end to end, so an attack on this module is one by an attacker who knows the purifier.
    In calls the classifier is in evaluation mode and the purifier in the mode of this module, evaluation from the start;
    outside of them both keep the modes that they had.

    Args:
        purifier: images -> images.
        classifier: images in [0,1] -> logits (N, classes), with its normalisation inside. Its parameters stay as they are.

    Raises:
        InputError: one of them is not a module, or they are in the wrong order.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        for name, part in (("purifier", purifier), ("classifier", classifier)):
            if not isinstance(part, nn.Module):
                known = {"purifier": "purifiers.Purifier.from_pretrained", "classifier": "purifiers.load_classifier"}
                hint = f"; load it with {known[name]}({part!r})" if isinstance(part, str) else ""
                raise InputError(f"the {name} must be a torch.nn.Module; got {type(part).__name__}{hint}")
        if isinstance(classifier, Purifier):
            raise InputError("the classifier is a Purifier: the purifier comes first, then the classifier")
        self.purifier = purifier
        self.classifier = classifier
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Set the mode that the purifier has in calls; the modules themselves are not touched."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of ``images`` (N, C, H, W), float32, in [0,1]; raises as :class:`Purifier` does."""
        with in_mode(self.purifier, self.training), in_mode(self.classifier, False):
            purified = self.purifier(images)
            # A classifier may change its images in place; those of the caller stay as they are.
            return self.classifier(images.clone() if purified is images else purified)


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """``module`` and all within in training or evaluation mode; each is restored at the end."""
    changed = [part for part in module.modules() if part.training != training]
    try:
        for part in changed:
            part.training = training
        yield
    finally:
        for part in changed:
            part.training = not training
