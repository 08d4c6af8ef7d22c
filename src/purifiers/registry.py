"""Networks, attacks, views, data sets and baselines by name; networks are built, saved and loaded by theirs.

A registry is open: ``@NETWORKS.register("my_net")`` adds your class under a short name, and even without that, everything that
takes a name also takes ``my_package.nets:MyNet``.
"""

import inspect
import json
import pkgutil
import sys
import traceback
from collections import UserDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from purifiers.device import float32_on_cpu
from purifiers.errors import CheckpointError, ConfigError, InputError, MissingFileError, nearest
from purifiers.storage import digest, load_tensors, parse_json, save_tensors, write_text
from purifiers.version import __version__

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT = 1
ARGUMENTS = 100_000
"""The largest sum of the numbers in a network's arguments: of its layers, their widths, its classes."""


class Registry(UserDict[str, T]):
    """Things of one ``kind`` by name: a registered one, or ``module:Name`` of anybody's module.

    The modules of ``packages``, which register theirs, are imported when a name is first looked up. ``make`` makes the entry
    from a registered thing and the further arguments of :meth:`register`; by default it is the thing.
    """

    def __init__(self, kind: str, *packages: str, make: Callable[..., T] | None = None) -> None:
        self.kind = kind
        self._packages = packages
        self._make = make
        self._entries: dict[str, T] = {}
        self._names: dict[Any, str] = {}  # of the things that were registered, and of their entries

    def register(self, name: str | None = None, **about: Any) -> Callable[[Any], Any]:
        """A decorator that registers a class or function as ``name``, by default ``module:Name``, and returns it unchanged."""

        def decorate(thing: Any) -> Any:
            chosen = name or f"{thing.__module__}:{thing.__qualname__}"
            self._entries[chosen] = self._make(thing, **about) if self._make is not None else thing
            self._names[thing] = self._names[self._entries[chosen]] = chosen
            return thing

        return decorate

    @property
    def data(self) -> dict[str, T]:  # type: ignore[override]  # where UserDict looks
        """The registered things by name, after the packages' modules have registered theirs."""
        packages, self._packages = self._packages, ()
        for name in packages:
            for module in pkgutil.iter_modules(import_module(name).__path__):
                import_module(f"{name}.{module.name}")
        return self._entries

    def __missing__(self, name: str) -> T:
        """The thing at ``module:Name``; raises ConfigError if no class or function is there, or for its import."""
        if not isinstance(name, str) or ":" not in name:
            raise ConfigError(f"there is no {self.kind} '{name}'{nearest(str(name), self)}")
        thing = resolve(name, self.kind)
        if not (callable(thing) and isinstance(thing, Hashable)):
            raise ConfigError(f"'{name}' is no {self.kind}: it is a {type(thing).__name__}; name a class or a function")
        if thing not in self._names:
            self.register(name)(thing)
        return self._entries[self._names[thing]]

    def name_of(self, thing: Any) -> str:
        """The name under which ``thing`` is found again: as it was registered, else ``module:Name``."""
        return (self.data and self._names.get(thing)) or f"{thing.__module__}:{thing.__qualname__}"


def resolve(place: str, what: str) -> Any:
    """The object at ``module:Name``, also of the working directory; raises ConfigError if it cannot be imported."""
    module_name, _, name = place.partition(":")
    try:
        with user_modules():
            module = import_module(module_name)
    except ModuleNotFoundError as error:
        advice = "run the command in the folder that holds the module, or add that folder to PYTHONPATH"
        raise ConfigError(f"cannot import the {what} '{place}' ({error}); {advice}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises, such as a script that exits
        raise ConfigError(f"importing the {what} '{place}' failed: {located(error)}") from error
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"the module '{module_name}' has no '{name}'{nearest(name, own)}")
    return getattr(module, name)


@contextmanager
def user_modules() -> Iterator[None]:
    """The working directory is on ``sys.path`` within, as it is for ``python -m`` but not for an installed command."""
    added = [here] if (here := str(Path.cwd())) not in sys.path else []
    sys.path[:0] = added
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def located(error: BaseException) -> str:
    """An error in the user's own code, with its place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


def _network(thing: Any) -> type[nn.Module]:
    if not (isinstance(thing, type) and issubclass(thing, nn.Module)):
        raise ConfigError(f"'{getattr(thing, '__name__', thing)}' is not a network: a subclass of torch.nn.Module is needed")
    return thing


NETWORKS: Registry[type[nn.Module]] = Registry("network", "purifiers.networks", "purifiers.baselines", make=_network)
"""Networks that purify images, and classifiers: subclasses of :class:`purifiers.networks.Network`."""


def build_network(name: str, arguments: Mapping[str, Any], device: str = "cpu") -> nn.Module:
    """Build the network ``name`` with its constructor's ``arguments``; one that is a network is a mapping: its name under
    ``network``, beside its own arguments. On the device ``meta`` it takes no memory, and has no weights.

    Raises:
        ConfigError: an unknown name or argument (the message gives the nearest valid one), or unusable values.
    """
    network = NETWORKS[name]
    valid = inspect.signature(network).parameters
    for argument in arguments:
        if argument not in valid:
            raise ConfigError(f"the network '{name}' takes no '{argument}'{nearest(argument, valid)}")
    parts = {key: dict(value) for key, value in arguments.items() if isinstance(value, Mapping) and "network" in value}
    try:
        if not _total(arguments) <= ARGUMENTS:
            raise ValueError(f"it is too large: the numbers in its arguments add up to more than {ARGUMENTS:,}")
        built = {key: build_network(value.pop("network"), value, device) for key, value in parts.items()}
        with float32_on_cpu(), torch.device(device):
            return network(**{**arguments, **built})
    except (InputError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot build the network '{name}': {error}") from error


def place(network: Module, device: torch.device | str) -> Module:
    """``network`` on ``device``; registered networks get channels-last memory, in which convolutions are fast. Others keep
    theirs: channels last breaks code such as ``x.view(len(x), -1)``. On MPS all keep it: there the backward pass of BatchNorm
    is wrong for channels-last tensors (pytorch #175189)."""
    if type(network) not in NETWORKS.values() or torch.device(device).type == "mps":
        return network.to(device)
    placed: Module = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) of everything that decides a module's outputs: structure, parameters and all buffers, also those that are
    not saved, such as a normalisation. Plain attributes of foreign modules are not seen."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    configs = [getattr(part, "config", None) for part in module.modules() if type(part) in NETWORKS.values()]
    return digest(repr(module), configs, {name: tensor.detach() for name, tensor in tensors.items()})


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``network``; raises MissingFileError, or CheckpointError if it does not fit."""
    tensors, _ = load_tensors(path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        hint = str(error).split("\n", 1)[-1].strip()[:300]
        prefixes = {key.split(".")[0] for key in tensors}
        if len(prefixes) == 1 and not hasattr(network, prefix := prefixes.pop()):
            hint = f"all their names begin with '{prefix}.', as of a DataParallel or compiled model: save the module inside it"
        raise CheckpointError(f"the weights in {path} do not fit this network: {hint}") from error


def describe(network: nn.Module) -> dict[str, Any]:
    """The network's name under ``network``, its constructor's arguments beside it, JSON-able; InputError if it keeps none."""
    config = getattr(network, "config", None)
    if not isinstance(config, dict):
        advice = "derive it from purifiers.networks.Network, which keeps its constructor's arguments"
        if hasattr(network, "config"):
            advice = "it was made for inference; save the purifier from which it was made"
        raise InputError(f"cannot save a {type(network).__name__}: {advice}")
    arguments = {key: describe(value) if isinstance(value, nn.Module) else value for key, value in config.items()}
    return {"network": NETWORKS.name_of(type(network)), **arguments}


def save_network(folder: Path, network: nn.Module) -> None:
    """Write ``network`` to ``folder`` as model.safetensors and config.json; raises as :func:`describe` does."""
    arguments = describe(network)
    about = {"format": FORMAT, "version": __version__, "output": getattr(network, "output", "images")}
    config = about | {"network": arguments.pop("network"), "arguments": arguments}
    config["sha256"] = digest(config)
    save_tensors(folder / WEIGHTS_FILE, network.state_dict())
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def _refuse_larger(name: str, arguments: Mapping[str, Any], weights: Path) -> None:
    """Refuse, with ConfigError, a network that its weights are too small for, before it takes memory."""
    if ":" not in name and weights.is_file():  # the constructors of others may need values, which are not there on this device
        tensors = build_network(name, arguments, "meta").state_dict().values()
        count, there = sum(tensor.numel() for tensor in tensors), weights.stat().st_size
        if count > there:  # a byte each, at least
            raise ConfigError(f"it has {count:,} weights, which do not fit the {there:,} bytes of {weights.name}")


def _total(value: Any) -> float:
    if isinstance(value, Mapping | list):
        return sum(map(_total, value.values() if isinstance(value, Mapping) else value))
    return abs(value) if isinstance(value, int | float) else 0


@float32_on_cpu()
def load_network(folder: Path) -> nn.Module:
    """Load what :func:`save_network` wrote, in evaluation mode, on the CPU.

    Raises:
        MissingFileError: one of the files is missing.
        CheckpointError: one is damaged or of a newer format, or they do not belong together.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise MissingFileError(f"{folder} holds no {CONFIG_FILE}; a saved network has that and {WEIGHTS_FILE}")
    config = parse_json(path.read_bytes(), str(path))
    try:
        version, name, arguments = config["format"], str(config["network"]), dict(config["arguments"])
        if config.pop("sha256", None) not in (None, digest(config)):
            raise ValueError("its content does not match its checksum")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or was not written by this library ({error!r})") from error
    if version != FORMAT:
        advice = "upgrade the library" if isinstance(version, int) and version > FORMAT else "it is damaged: copy it again"
        raise CheckpointError(f"{path} has format {version!r}; this version reads format {FORMAT}: {advice}")
    try:
        _refuse_larger(name, arguments, folder / WEIGHTS_FILE)
        network = build_network(name, arguments)
    except ConfigError as error:
        writer = f"purifiers {config['version']} wrote it" if "version" in config else "if a newer version wrote it"
        found = f"{path} describes a network that cannot be built here"
        raise CheckpointError(f"{found}: {error} ({writer}, this is {__version__})") from error
    load_weights(network, folder / WEIGHTS_FILE)
    return network.eval()
