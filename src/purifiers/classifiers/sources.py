"""Where a classifier comes from: one function for each form of :data:`purifiers.classifiers.CLASSIFIER_FORMS`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purifiers import weights
from purifiers.classifiers import CLASSIFIER_FORMS
from purifiers.classifiers.adapters import Normalized
from purifiers.classifiers.exported import HOW, load_exported
from purifiers.classifiers.huggingface import load_transformers
from purifiers.data import ImageSet
from purifiers.errors import ConfigError, nearest
from purifiers.registry import CONFIG_FILE, build_network, load_network, load_weights, located, resolve, user_modules
from purifiers.weights import HUB, MEMORY

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def build_classifier(
    network: Mapping[str, Any], classes: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> nn.Module:
    """The untrained ``network`` (its name under ``network``, arguments beside it) for ``classes`` classes."""
    arguments = {key: value for key, value in network.items() if key != "network"}
    own = {key: list(value) * (3 // len(value)) for key, value in (("mean", mean), ("std", std)) if value}
    return build_network(network["network"], {**arguments, **own, "num_classes": classes})


def open_source(
    source: str,
    data: ImageSet,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    network: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The classifier that ``source`` names, on the CPU, unchecked; see :func:`purifiers.classifiers.load.load_classifier`.

    ``mean`` and ``std`` replace those of ``network`` or of a Hugging Face model's files, and go before anything else.
    """
    path = weights.locate(source)
    if source.startswith(HUB) or is_transformers(path):
        return load_transformers(source.removeprefix(HUB), data, mean, std)
    if source.startswith(f"{MEMORY}:"):
        raise ConfigError(f"'{source}' was passed from Python and is not on disk: name the classifier with --classifier")
    if path.suffix == ".safetensors":
        if is_transformers(path.parent):
            raise ConfigError(f"{path} belongs to a Hugging Face model: give its folder, {path.parent}")
        if not data.classes or network is None:
            advice = "give --recipe or --data-dir, or a saved network's folder (in Python: data=, network=)"
            raise ConfigError(f"{path} holds weights alone, and their network or its classes are not known: {advice}")
        classifier = build_classifier(network, len(data.classes), mean, std)
        load_weights(classifier, path)
        return classifier
    if path.is_dir():
        if mean is not None:
            raise ConfigError(f"the classifier in {path} has its normalisation inside: leave out mean and std")
        classifier = load_network(path)
        if getattr(classifier, "output", None) != "logits":
            raise ConfigError(f"'{source}' is a purifier; expected a classifier")
        return classifier
    if path.suffix in PICKLES:
        anew = f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), '{path.stem}.safetensors')"
        raise ConfigError(
            f"{path} is a pickle, which can run code when it is opened, so it is not read. If you trust it: of weights of the "
            f"recipe's network,  {anew}  writes a file to give; else give module:function, which returns the classifier"
        )
    if path.suffix != ".pt2" and ":" not in source:
        hint = nearest(source, weights.CLASSIFIERS)
        raise ConfigError(f"cannot load a classifier from '{source}'{hint}: give {CLASSIFIER_FORMS}")
    classifier = load_exported(path) if path.suffix == ".pt2" else _call(source)
    return classifier if mean is None or std is None else Normalized(classifier, mean, std)


def is_transformers(folder: Path) -> bool:
    """Is this the folder of a Hugging Face model? The library's own name a ``network`` in their config.json."""
    try:
        config: Any = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "network" not in config and ("model_type" in config or "architectures" in config)


def _call(source: str) -> nn.Module:
    build = resolve(source, "classifier")
    if not callable(build):
        raise ConfigError(f"'{source}' is a {type(build).__name__}; it must be a function that returns a torch.nn.Module")
    try:
        with user_modules():
            classifier = build()
    except Exception as error:
        raise ConfigError(f"calling the classifier '{source}' failed: {located(error)}") from error
    if isinstance(classifier, torch.jit.ScriptModule):
        raise ConfigError(f"'{source}' returned a TorchScript module, which cannot be frozen: return its source, or {HOW}")
    if not isinstance(classifier, nn.Module):
        raise ConfigError(f"'{source}' returned a {type(classifier).__name__}; it must return a torch.nn.Module")
    return classifier
