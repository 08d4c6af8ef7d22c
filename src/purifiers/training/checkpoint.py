"""Training states on disk: any nesting of dicts, lists, tensors and plain values, in one safetensors file, no pickle."""

from pathlib import Path
from typing import Any

from torch import Tensor

from purifiers.errors import CheckpointError
from purifiers.files import load_tensors, save_tensors


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically. Tensors go to safetensors, everything else, as a tree with their names, to JSON."""
    tensors: dict[str, Tensor] = {}
    tree = _strip(state, tensors, "state")
    save_tensors(path, tensors, {"state": tree})


def load_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, tensors on the CPU.

    Raises:
        MissingFileError, CheckpointError: no such file; it is damaged, or is not a training state.
    """
    tensors, metadata = load_tensors(path)
    try:
        state = _restore(metadata["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a training state of this library") from error
    return dict(state)


# In the tree, containers and tensors are marked, as JSON has no tuples, no integer keys and no tensors.


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
