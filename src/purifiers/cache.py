"""Results that are expensive to compute, kept in a folder by everything that decides them."""

import inspect
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from purifiers.classifiers.probes import gradient_at
from purifiers.console import say
from purifiers.data import to_float
from purifiers.errors import InputError, PurifiersError
from purifiers.purifier import in_mode
from purifiers.seeds import reproducible
from purifiers.shards import Shard
from purifiers.storage import digest, load_state, save_state
from purifiers.version import __version__

T = TypeVar("T")
State = dict[str, Any]
PROBES = 2  # images on which a model's outputs and gradient become part of the key
_FILE = "{}-{:.32}.safetensors"
STALE = 24 * 3600  # after so many seconds a temporary file is one that a killed process left


@cache
def _versions() -> list[str]:
    return [__version__, *map(version, ("torch", "foolbox", "pyautoattack"))]


class Cache:
    """Finished results, one file for each in ``folder``, or none: ``<kind>-<key>.safetensors``. A model counts as it was when
    this object first saw it: make a new cache after changing one. Variables of a module that its code reads do not count.

    ``shard``: the share of the work that this process does; what is left to others is noted there."""

    def __init__(self, folder: Path | str | None, shard: Shard | None = None) -> None:
        if not isinstance(folder, Path | str | None):
            raise InputError(f"a cache is the path of a folder, or None; got {folder!r}")
        self.folder = None if folder is None else Path(folder)
        self.shard = shard or Shard()
        self._seen: dict[int, tuple[Any, str]] = {}  # by id: the object, so that the id stays its own, and its description
        self._probed: dict[tuple[int, str], list[str]] = {}  # by the id of a model, which is in _seen, and the images
        for left in self.folder.glob(".*.tmp.safetensors") if self.folder else ():
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()

    def key(self, model: nn.Module, images: Tensor, *others: Any) -> str:
        """SHA-256 (hex) of what decides a result: ``images``, uint8 (N, C, H, W), ``others``, such as labels, and ``model``,
        with its weights, attributes, hooks and the source files of its classes. Compiled parts, which Python cannot see, count
        by the outputs and the gradient on a few of the images."""
        if self.folder is None:
            return ""
        few = to_float(images[:: -(-len(images) // PROBES)])
        place = id(model), digest(few)
        if place not in self._probed:
            with in_mode(model, False), torch.no_grad():
                with reproducible(0, images.device):
                    outputs = model(few)
                self._probed[place] = self._describe([outputs, gradient_at(model, few)])
        return digest(self._describe([model, *self._probed[place], images, *others, _versions(), images.device.type]))

    def load(self, kind: str, key: str, accept: Callable[[State], T]) -> T | None:
        """What ``accept`` makes of an entry; None if there is none, or a damaged one, which is then computed again."""
        if self.folder is None:
            return None
        file = self.folder / _FILE.format(kind, key)
        with suppress(PurifiersError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            found = accept(load_state(file))
            self.shard.missing.discard(file)
            return found
        return None

    def has(self, kind: str, key: str = "*") -> bool:
        """Whether there is an entry, sound or damaged."""
        return self.folder is not None and any(self.folder.glob(_FILE.format(kind, key)))

    def left(self, kind: str, key: str, number: int) -> bool:
        """Whether the piece of work of this ``number``, which :meth:`load` does not find, is left to another process."""
        if self.folder is None or self.shard.takes(number):
            return False
        file = self.folder / _FILE.format(kind, key)
        if file.exists():  # it is damaged: made again by whoever finds it
            return False
        self.shard.missing.add(file)
        self.shard.incomplete = True
        return True

    def save(self, kind: str, key: str, state: State) -> State:
        """Keep ``state``, which holds tensors and JSON-like values; returns it."""
        if self.folder is not None:
            try:
                save_state(self.folder / _FILE.format(kind, key), state)
            except OSError as error:  # a full or read-only disk costs the cache, not the result
                if self.shard.count > 1:  # others wait for it
                    raise
                say(f"warning: cannot write the cache {self.folder}, continuing without it: {error}")
                self.folder = None
        return state

    def _describe(self, value: Any) -> Any:
        """``value`` as JSON-like content that is the same in every process."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (Tensor, bytes)):
            return digest(value if isinstance(value, Tensor) else value.hex())
        if isinstance(value, (list, tuple)):
            return [self._describe(item) for item in value]
        if isinstance(value, Mapping):
            return [[str(key), self._describe(item)] for key, item in value.items()]
        if isinstance(value, (set, frozenset)):
            return sorted(str(self._describe(item)) for item in value)
        if id(value) not in self._seen:
            self._seen[id(value)] = value, type(value).__qualname__  # for what refers to itself
            self._seen[id(value)] = value, digest(self._describe([*_parts(value)]))
        return self._seen[id(value)][1]


def _parts(value: Any) -> list[Any]:
    """Everything that decides what a function, a class or another object does."""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != type(cell)()]  # not the empty ones
        return [_source(value), value.__code__.co_code, value.__defaults__, value.__kwdefaults__, cells]
    if isinstance(value, type):
        return [_source(part) for part in value.__mro__]
    if isinstance(value, BaseModel):
        return [type(value), vars(value)]
    if isinstance(value, nn.Module):
        # The keys of hooks are counted up in a process.
        hooks = [(name, item) for name, item in vars(value).items() if name.endswith("hooks") and isinstance(item, dict)]
        return [type(value), vars(value) | {name: [*item.values()] for name, item in hooks} | {"training": False}]
    try:
        return [type(value), value.__reduce_ex__(4)]  # what pickle would write
    except Exception:  # of what cannot be pickled, such as a lock, only the type is known
        return [type(value)]


def _source(thing: type | FunctionType) -> list[str]:
    """The name of a class or function, and a digest of its source file, unless that is of an installed package."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    file = Path(getattr(sys.modules.get(thing.__module__), "__file__", None) or "")
    texts = [_digest_of(file)] if file.suffix == ".py" and "site-packages" not in file.parts else []
    if not texts and thing.__module__ == "__main__":  # a notebook's, which has no file
        for function in (thing, *vars(thing).values()):
            with suppress(OSError, TypeError):
                texts.append(inspect.getsource(function))
    return [name, *texts]


@cache
def _digest_of(file: Path) -> str:
    return digest(file.read_text(errors="replace")) if file.is_file() else ""
