"""Where a classifier comes from: one function for each form of :data:`purifiers.classifiers.CLASSIFIER_FORMS`."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
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
from purifiers.registry import (
    CONFIG_FILE,
    build_network,
    load_network,
    load_weights,
    located,
    resolve,
    working_directory_importable,
)
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
    if path.suffix == ".pt2":
        classifier = load_exported(path)
    elif path.suffix in PICKLES:
        raise ConfigError(
            f"{path} is a pickle, which can run code when it is opened, so it is not read. If you trust it: where it holds "
            f"weights of the recipe's network, write them anew with  safetensors.torch.save_file(torch.load('{path.name}', "
            f"weights_only=True), '{path.stem}.safetensors')  and give that file; else load it in a function of your own that "
            "returns the classifier, and give module:function"
        )
    elif ":" in source:
        classifier = _call(source)
    else:
        hint = nearest(source, weights.CLASSIFIERS)
        module = source.removesuffix(".py")
        with working_directory_importable():
            if all(map(str.isidentifier, module.split("."))) and find_spec(module.split(".")[0]) is not None:
                raise ConfigError(f"'{source}' is a module: name its function that returns the classifier, {module}:function")
        raise ConfigError(f"cannot load a classifier from '{source}'{hint}: give {CLASSIFIER_FORMS}")
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
        with working_directory_importable():
            classifier = build()
    except Exception as error:
        raise ConfigError(f"calling the classifier '{source}' failed: {located(error)}") from error
    if isinstance(classifier, torch.jit.ScriptModule):
        raise ConfigError(
            f"'{source}' returned a TorchScript module, which cannot be frozen: return its source module, or {HOW}"
        )
    if not isinstance(classifier, nn.Module):
        raise ConfigError(f"'{source}' returned a {type(classifier).__name__}; it must return a torch.nn.Module")
    return classifier
