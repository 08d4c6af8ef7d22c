"""Where a classifier comes from: one function for each form of :data:`purifiers.classifiers.CLASSIFIER_FORMS`."""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from torch import nn

from purifiers import weights
from purifiers.classifiers import CLASSIFIER_FORMS
from purifiers.classifiers.adapters import Normalized
from purifiers.classifiers.exported import load_exported
from purifiers.classifiers.huggingface import load_transformers
from purifiers.data import ImageSet
from purifiers.errors import ConfigError, nearest
from purifiers.recipes.schema import Classifier
from purifiers.registry import CONFIG_FILE, PURIFIERS, build_network, load_network, load_weights
from purifiers.weights import HUB

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def build_classifier(config: Classifier, classes: int) -> nn.Module:
    """The untrained network of the recipe for ``classes`` classes."""
    own = {key: list(value) * (3 // len(value)) for key, value in (("mean", config.mean), ("std", config.std)) if value}
    return build_network(config.network.network, {**config.network.arguments, **own, "num_classes": classes})


def open_source(source: str, config: Classifier, data: ImageSet) -> nn.Module:
    """The classifier that ``source`` names, on the CPU, unchecked; see :func:`purifiers.classifiers.load.load_classifier`.

    The normalisation that ``config`` gives is in it: in the place of the recipe's network's own, or of that of a Hugging Face
    model's files; before what else takes any.
    """
    path = weights.locate(source)
    if source.startswith(HUB) or is_transformers(path):
        return load_transformers(source.removeprefix(HUB), config, data)
    if path.suffix == ".safetensors":
        if is_transformers(path.parent):
            raise ConfigError(f"{path} belongs to a Hugging Face model: give its folder, {path.parent}")
        if not data.classes:
            raise ConfigError(
                f"of which network and how many classes {path} holds the weights is not known here: name the recipe of its "
                "images with --recipe or give their folder with --data-dir, or give a saved network's folder"
            )
        classifier = build_classifier(config, len(data.classes))
        load_weights(classifier, path)
        return classifier
    if path.is_dir():
        if config.mean is not None:
            raise ConfigError(f"the classifier in {path} has its normalisation inside: leave out mean and std")
        network = load_network(path)
        if type(network) in PURIFIERS.values():
            raise ConfigError(f"'{source}' is a purifier, which makes images of images; a classifier is needed here")
        return network
    if path.suffix == ".pt2":
        classifier = load_exported(path)
    elif path.suffix in PICKLES:
        raise ConfigError(_pickled(path))
    elif ":" in source:
        classifier = _call(source)
    else:
        hint = nearest(source, weights.CLASSIFIERS)
        raise ConfigError(f"cannot load a classifier from '{source}'{hint}: give {CLASSIFIER_FORMS}")
    return classifier if config.mean is None or config.std is None else Normalized(classifier, config.mean, config.std)


def told(error: Exception) -> str:
    """An error in the user's own code, with the place to look at."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def is_transformers(folder: Path) -> bool:
    """Is this the folder of a Hugging Face model? The library's own name a ``network`` in their config.json."""
    try:
        config: Any = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "network" not in config and ("model_type" in config or "architectures" in config)


def _call(source: str) -> nn.Module:
    module_name, _, function_name = source.partition(":")
    # The command's own folder is on the path of `python -m`, but not of an installed command.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
        build = getattr(module, function_name, None)
        classifier = build() if callable(build) else None
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"cannot import the classifier '{source}' ({error}); give the command in the folder that holds the module, "
            "or put that folder on PYTHONPATH"
        ) from error
    except Exception as error:
        raise ConfigError(f"calling the classifier '{source}' failed: {told(error)}") from error
    if not callable(build):
        own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(f"the module '{module_name}' has no function '{function_name}'{nearest(function_name, own)}")
    if not isinstance(classifier, nn.Module):
        raise ConfigError(f"'{source}' returned a {type(classifier).__name__}; it must return a torch.nn.Module")
    return classifier


def _pickled(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run code when it is opened, so it is not read. If you trust it: where it holds weights "
        f"of the recipe's network, write them anew with  safetensors.torch.save_file(torch.load('{path.name}', "
        f"weights_only=True), '{path.stem}.safetensors')  and give that file; else load it in a function of your own that "
        "returns the classifier, and give module:function"
    )
