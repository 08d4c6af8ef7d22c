"""Networks by name: the one way in which any of them is built, saved and loaded."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from purifiers.baselines import JPEG, NRP, SOAP, Adaptive, BitDepth, Blend, Median, Noisy, Nothing, TotalVariation
from purifiers.errors import CheckpointError, ConfigError, InputError, MissingFileError, nearest
from purifiers.networks import CAE, ResNet
from purifiers.storage import digest, load_tensors, save_tensors, write_text
from purifiers.version import __version__

Module = TypeVar("Module", bound=nn.Module)

PURIFIERS: dict[str, type[nn.Module]] = {
    "cae": CAE,
    "nrp": NRP,
    "soap": SOAP,
    "jpeg": JPEG,
    "bit_depth": BitDepth,
    "median": Median,
    "total_variation": TotalVariation,
    "nothing": Nothing,
    "noisy": Noisy,
    "adaptive": Adaptive,
    "blend": Blend,
}
"""Networks that map images to images, by name."""
CLASSIFIERS: dict[str, type[nn.Module]] = {"resnet": ResNet}
"""Networks that map images to logits, by name."""
NETWORKS = PURIFIERS | CLASSIFIERS
"""All of them. A network keeps its constructor's arguments in ``config``: JSON-able, or again such a network."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT = 1


def build_network(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network ``name`` of the registry with its constructor's ``arguments``.

    An argument that is a network is given as a mapping: its name under ``network``, its own arguments beside that.

    Raises:
        ConfigError: an unknown name or argument (the message gives the nearest valid one), or unusable values.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise ConfigError(f"there is no network '{name}'{nearest(name, NETWORKS)}")
    valid = inspect.signature(NETWORKS[name]).parameters
    for argument in arguments:
        if argument not in valid:
            raise ConfigError(f"the network '{name}' takes no '{argument}'{nearest(argument, valid)}")
    try:
        built = {
            key: build_network(value["network"], {k: v for k, v in value.items() if k != "network"})
            if isinstance(value, Mapping) and "network" in value
            else value
            for key, value in arguments.items()
        }
        return NETWORKS[name](**built)
    except (InputError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot build the network '{name}': {error}") from error


def place(network: Module, device: torch.device | str) -> Module:
    """``network`` on ``device``; weights of our own networks get channels last in memory, which convolutions are fast in.

    Others keep their layout: channels last would reach code of the user's such as ``x.view(len(x), -1)``, which then fails.
    """
    if type(network) not in NETWORKS.values():
        return network.to(device)
    placed: Module = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) of everything that decides a module's outputs: structure, parameters and all buffers.

    Buffers that are not saved, such as a normalisation, count too: without them two different functions of the same
    weights would share cached adversarial examples. What a foreign module keeps in plain attributes is not seen.
    """
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    configs = [getattr(part, "config", None) for part in module.modules() if type(part) in NETWORKS.values()]
    return digest(repr(module), configs, {name: tensor.detach() for name, tensor in tensors.items()})


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``network``.

    Raises:
        MissingFileError, CheckpointError: no such file; a damaged one; or weights of another network.
    """
    tensors, _ = load_tensors(path)
    _load_state(network, tensors, path)


def _load_state(network: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).split("\n", 1)[-1].strip()[:300]
        raise CheckpointError(f"the weights in {path} do not fit this network: {first}") from error


def describe(network: nn.Module) -> dict[str, Any]:
    """The network's name under ``network`` and its constructor's arguments beside it, JSON-able, networks in them too.

    Raises:
        InputError: its class, or that of a network within, is not in the registry, so that it could not be built again.
    """
    names = {cls: name for name, cls in NETWORKS.items()}
    if type(network) not in names:
        raise InputError(f"cannot save a {type(network).__name__}: only {', '.join(NETWORKS)} can be loaded again by name")
    arguments = {key: describe(value) if isinstance(value, nn.Module) else value for key, value in network.config.items()}  # type: ignore[union-attr, operator]
    return {"network": names[type(network)], **arguments}


def save_network(folder: Path, network: nn.Module, **about: Any) -> None:
    """Write ``network`` to ``folder`` as model.safetensors and config.json; ``about`` is added to the latter.

    Raises:
        InputError: the network's class is not in the registry, so that it could not be loaded again.
    """
    described = describe(network)
    network_name = described.pop("network")
    config = {"format": FORMAT, "version": __version__, "network": network_name, "arguments": described, **about}
    save_tensors(folder / WEIGHTS_FILE, network.state_dict())
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load_network(folder: Path) -> nn.Module:
    """Load what :func:`save_network` wrote, in evaluation mode, on the CPU.

    Raises:
        MissingFileError: the folder, its config.json or its model.safetensors is missing.
        CheckpointError: one of them is damaged, of a newer format, or they do not belong together.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise MissingFileError(
            f"{folder} holds no {CONFIG_FILE}; a saved network is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    try:
        config = json.loads(path.read_text())
        version, name, arguments = config["format"], str(config["network"]), dict(config["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or was not written by this library ({error!r})") from error
    if version != FORMAT:
        advice = "upgrade the library" if isinstance(version, int) and version > FORMAT else "it is damaged: copy it again"
        raise CheckpointError(f"{path} has format {version}; this version reads format {FORMAT}: {advice}")
    try:
        network = build_network(name, arguments)  # an argument that came later has its default, which is what there was before
    except ConfigError as error:
        writer = f"purifiers {config['version']} wrote it" if "version" in config else "if a newer version wrote it"
        raise CheckpointError(
            f"{path} describes no network of this version: {error} ({writer}, this is {__version__}: upgrade the library)"
        ) from error
    load_weights(network, folder / WEIGHTS_FILE)
    return network.eval()
