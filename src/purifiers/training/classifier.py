"""The classifier to protect: trained by us, or brought by the user and then only ever read."""

import importlib
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn

from purifiers import weights
from purifiers.attacks.base import frozen
from purifiers.data import ImageSet, slices, to_float
from purifiers.errors import ConfigError
from purifiers.naming import nearest
from purifiers.recipes.schema import Classifier
from purifiers.registry import build_network, load_network, load_weights, place


def build_classifier(config: Classifier, classes: int) -> nn.Module:
    """The untrained network of the recipe for ``classes`` classes."""
    return build_network(config.network.network, {**config.network.arguments, "num_classes": classes})


def load_classifier(source: str, config: Classifier, data: ImageSet) -> nn.Module:
    """Load the user's classifier in evaluation mode, without parameter gradients, on the data's device, and check it.

    Args:
        source: a .safetensors file for the recipe's network, a folder with config.json and model.safetensors, the name
            of a shipped classifier such as ``cifar10-resnet20``, or ``module:function``.
        config: the recipe's classifier.
        data: images that it must be able to classify.

    Raises:
        ConfigError: not one of these forms; a module or function that cannot be imported or called; a classifier that
            does not return finite logits (N, classes) for the data's images and classes, or has no input gradient.
        MissingFileError, CheckpointError: see :func:`purifiers.registry.load_network`.
    """
    classifier = open_classifier(source, config, len(data.classes))
    classifier = place(classifier, data.images.device).eval().requires_grad_(False)
    _check(classifier, source, data)
    return classifier


def open_classifier(source: str, config: Classifier | None, classes: int | None) -> nn.Module:
    """Load a classifier, which is not checked; on the CPU.

    Args:
        source: see :func:`load_classifier`.
        config, classes: of the network whose weights a .safetensors file holds; None if they are not known.

    Raises:
        ConfigError, MissingFileError, CheckpointError: see :func:`load_classifier`.
    """
    path = weights.locate(source)
    if path.suffix == ".safetensors":
        if config is None or classes is None:
            raise ConfigError(f"of which network {source} holds the weights is not known here: give a saved folder instead")
        classifier = build_classifier(config, classes)
        load_weights(classifier, path)
        return classifier
    if path.is_dir():
        return load_network(path)
    if ":" in source:
        return _call(source)
    raise ConfigError(
        f"cannot load a classifier from '{source}'{nearest(source, weights.NAMES)}: give a .safetensors file, a "
        "folder with config.json and model.safetensors, the name of a shipped one, or module:function"
    )


def _call(source: str) -> nn.Module:
    module_name, _, function_name = source.partition(":")
    # The command's own folder is on the path of `python -m`, but not of an installed command.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        classifier = getattr(importlib.import_module(module_name), function_name)()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import the classifier '{source}' ({error}); give the command in the folder that holds the module, "
            "or put that folder on PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(f"calling the classifier '{source}' failed: {_told(error)}") from error
    if not isinstance(classifier, nn.Module):
        raise ConfigError(f"'{source}' returned a {type(classifier).__name__}; it must return a torch.nn.Module")
    return classifier


def _told(error: Exception) -> str:
    """An error in the user's own code, with the place to look at."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def _check(classifier: nn.Module, source: str, data: ImageSet) -> None:
    images = to_float(data.images[:2]).requires_grad_(True)
    with frozen(classifier):
        try:
            logits = classifier(images)
        except Exception as error:
            shape = tuple(images.shape)
            raise ConfigError(f"the classifier '{source}' fails on images {shape}: {_told(error)}") from error
        if not isinstance(logits, Tensor):
            raise ConfigError(f"the classifier '{source}' returns a {type(logits).__name__}; it must return a tensor of logits")
        expected = (len(images), len(data.classes))
        if tuple(logits.shape) != expected or not logits.isfinite().all():
            raise ConfigError(
                f"the classifier '{source}' must return finite logits {expected} for {len(images)} images of "
                f"{len(data.classes)} classes; got shape {tuple(logits.shape)}"
            )
        if not logits.requires_grad:
            raise ConfigError(
                f"the classifier '{source}' passes no gradient to its input; it cannot be attacked or trained against"
            )


def accuracy(classifier: nn.Module, data: ImageSet, batch_size: int = 500) -> float:
    """Share of ``data`` that is classified correctly, in [0,1]; the classifier should be in evaluation mode."""
    matches = torch.zeros((), dtype=torch.int64, device=data.images.device)
    with torch.no_grad():
        for batch in slices(len(data), batch_size):
            matches += (classifier(to_float(data.images[batch])).argmax(1) == data.labels[batch]).sum()
    return matches.item() / len(data)
