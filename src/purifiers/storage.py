"""Atomic writes, checksummed tensor files, YAML."""

import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

from purifiers.errors import CheckpointError, ConfigError, MissingFileError, TrainingError

LOCK_FILE = ".lock"
"""In a folder in which one process works at a time."""
_reading: ContextVar[bool] = ContextVar("reading", default=False)


@contextmanager
def read_only() -> Iterator[None]:
    """Nothing that is written within is kept, and no folder is made or locked."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` on success and vanishes on any error. The rename is atomic:
    another process, or this one after a kill, sees the old file or the new one, never a part."""
    if _reading.get():
        with TemporaryDirectory() as elsewhere:
            yield Path(elsewhere) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: image and figure writers choose the format by it. File systems limit the length of names.
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        # Made here, so that it has the permissions of an ordinary new file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, wait: bool = False, forecast: bool = False) -> Iterator[None]:
    """Make ``folder`` and keep others from working in it; raise if another process does, or ``wait`` until it has ended. The
    lock ends with the process, whatever becomes of its file. In a :func:`read_only` context it locks only with ``forecast``,
    for files that a forecast writes too."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder")
    if _reading.get() and not forecast:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    file = folder / LOCK_FILE
    handle = _lock(file, wait)
    while not (file.exists() and os.path.samestat(os.fstat(handle), file.stat())):  # who had the lock has removed its file
        os.close(handle)
        handle = _lock(file, wait)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)


def _lock(file: Path, wait: bool) -> int:
    """The handle of the locked ``file``, which is made."""
    import fcntl

    # On NFS the lock of a file that is open for writing reaches other machines, that of a folder does not (flock(2)).
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(handle)
        fault = f"another process trains in {file.parent}: wait for it, or choose another output folder"
        raise TrainingError(fault) from error
    except OSError:  # some network file systems have none
        pass
    except BaseException:  # Ctrl-C while it waits
        os.close(handle)
        raise
    return handle


def write_text(path: Path, content: str) -> None:
    """Write a whole UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode())


LARGEST = 8 * 2**30
"""Bytes of a file of weights."""
NESTED = 50
"""How deep lists and mappings in a YAML text may be nested."""
_WHOLE = r"[-+]?(0|[1-9]\d*)"
_FORMS = {"null": "~|null|", "bool": "true|false", "int": _WHOLE, "float": rf"({_WHOLE}(\.\d*)?|[-+]?\.\d+)(e[-+]?\d+)?"}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's is ten times as fast
    """Takes for numbers and booleans what YAML 1.2 does, so that ``yes``, ``1:30`` and dates are texts; ``010`` is one too."""

    yaml_implicit_resolvers: ClassVar[dict[None, list[tuple[str, re.Pattern[str]]]]] = {
        None: [(f"tag:yaml.org,2002:{tag}", re.compile(rf"({form})\Z", re.ASCII | re.I)) for tag, form in _FORMS.items()]
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if keys.setdefault(str(key.value), key) is not key:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is there twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1 or 1.2 takes for something else."""

    yaml_implicit_resolvers = yaml.SafeDumper.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def parse_yaml(text: str | bytes, what: str) -> Any:
    """The content of a YAML text; raises ConfigError, which calls it ``what``."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            # Nine lists of nine aliases each are a billion values.
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError(f"write the value out: aliases are not read\n{event.start_mark}")
            # libyaml builds what is nested by recursion, until its stack ends.
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > NESTED:
                raise yaml.YAMLError(f"nested more than {NESTED} deep\n{event.start_mark}")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe one
    except Exception as error:  # PyYAML raises more than its own
        raise ConfigError(f"cannot read {what} as YAML: {error}") from error


def parse_json(text: str | bytes, what: str) -> Any:
    """The content of a JSON text; raises CheckpointError, which calls it ``what``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is damaged: {error}; delete it or copy it again") from error


def yaml_text(content: Any) -> str:
    """``content`` as YAML, in its order, that :func:`parse_yaml` reads back."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False))


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of tensors, modules' states, strings, numbers and JSON-like containers, in this order. Tensors count with
    dtype, shape and bytes, so that equal digests mean equal content whatever the device."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            rows = part.detach().unsqueeze(0) if part.ndim == 0 else part.detach()
            for some in rows.split(1000):  # images may be in a file that does not fit into memory
                sha.update(some.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        elif isinstance(part, Mapping) and any(isinstance(value, Tensor) for value in part.values()):
            for key in sorted(part):
                sha.update(digest(key, part[key]).encode())
        else:
            sha.update(json.dumps(part, sort_keys=True, default=str).encode())
        sha.update(b"\0")
    return sha.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors and JSON metadata as one safetensors file, atomically, with checksums of both inside.

    The same tensors give the same bytes; with metadata its header comes in random order."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in flat.items():  # safetensors refuses tensors that share memory, as tied weights do
        place = tensor.untyped_storage().data_ptr()
        flat[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    text = json.dumps(dict(metadata or {}))
    header = {"sha256": digest(flat)} | ({"metadata": text, "metadata_sha256": digest(text)} if metadata else {})
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(flat, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata of a safetensors file; checksums are verified where it holds them, as ours do.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: the file is truncated, not safetensors, or its content does not match its checksums.
    """
    if not path.is_file():
        raise MissingFileError(f"no weights file at {path}")
    if (size := path.stat().st_size) > LARGEST:
        raise CheckpointError(f"{path} has {size:,} bytes; weights of at most {LARGEST:,} are read")
    try:
        content = path.read_bytes()  # at once: another process may replace the file
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError) as error:  # the latter for numbers of a kind that torch does not have
        found = lfs_hint(path) or f"damaged or not a safetensors file ({error}); delete it or copy it again"
        raise CheckpointError(f"{path} is {found}") from error
    header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], str(path)).get("__metadata__", {})
    text = header.get("metadata", "{}")
    checksums = {"sha256": digest(tensors), "metadata_sha256": digest(text)}
    if any(header.get(name, checksum) != checksum for name, checksum in checksums.items()):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum; delete it or copy it again")
    return tensors, parse_json(text, str(path))


def lfs_hint(source: Path | bytes) -> str:
    """What to do about a file, or its content, that is only Git LFS's pointer to the real one; empty if it is none."""
    mark = b"version https://git-lfs"
    if isinstance(source, Path):
        with source.open("rb") as handle:
            source = handle.read(len(mark))
    return "a pointer of Git LFS and not the file itself: run 'git lfs pull'" if source.startswith(mark) else ""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically: tensors as safetensors, everything else as a JSON tree with their names."""
    tensors: dict[str, Tensor] = {}
    save_tensors(path, tensors, {"state": _strip(state, tensors, "state")})


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, tensors on the CPU; raises as :func:`load_tensors` does."""
    tensors, metadata = load_tensors(path)
    try:
        return dict(_restore(metadata["state"], tensors))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a training state of this library") from error


# In the tree, containers and tensors are marked: JSON has neither integer keys nor tensors.


def _strip(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _strip(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_strip(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]}
    return value


def _restore(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((mark, content),) = tree.items()
    if mark == "tensor":
        return tensors[content]
    if mark == "dict":
        return {key: _restore(item, tensors) for key, item in content}
    return [_restore(item, tensors) for item in content]
