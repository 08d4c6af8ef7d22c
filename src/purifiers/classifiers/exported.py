"""Classifiers as files of ``torch.export``: a graph and its weights, without the code that made them."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from purifiers.classifiers.adapters import Fixed
from purifiers.errors import CheckpointError, ConfigError, MissingFileError, first_line
from purifiers.storage import lfs_hint

HOW = (
    'export it like this:  batch = torch.export.Dim("batch");  torch.export.save(torch.export.export(classifier.eval(), '
    '(images,), dynamic_shapes=({0: batch},)), "classifier.pt2")  with two or more images, float32 in [0,1]'
)
"""How a file has to be made."""
LARGEST = 10_000  # an upper bound on the images of any batch


def load_exported(path: Path) -> nn.Module:
    """The classifier in a ``.pt2`` file of ``torch.export.save``, on the CPU.

    Such a file is code: torch evaluates expressions in it. Pickled objects are refused, but open only files that you would run.

    Raises:
        MissingFileError, CheckpointError: no such file; a damaged one, or one with pickled objects.
        ConfigError: it takes something else than images, or batches of some sizes only.
    """
    if not path.is_file():
        raise MissingFileError(f"no exported classifier at {path}")
    content = path.read_bytes()
    if hint := lfs_hint(content):
        raise CheckpointError(f"{path} is {hint}")
    # What torch.export would unpickle besides tensors; names stand uncompressed in the archive.
    if re.search(rb"(?i)(custom|opaque)_obj_\d", content):
        raise CheckpointError(f"{path} holds pickled objects, which can run code when they are opened, so it is not read")
    try:
        with _without_pickle():
            program = torch.export.load(io.BytesIO(content))
    except Exception as error:  # of many kinds, as it fails wherever the damage is
        expected = f"torch.export.save of a version like this one's ({torch.__version__})"
        raise CheckpointError(f"{path} is damaged, or was not written by {expected}: {first_line(error)}; {HOW}") from error
    _refuse_other_inputs(program, path)
    # Nothing that shows in Python tells one graph from another.
    return Fixed(program.module(), hashlib.sha256(content).hexdigest())


@contextmanager
def _without_pickle() -> Iterator[None]:
    """Tensors only, whatever ``torch.export.load`` falls back to; and it logs no traceback, as an error of ours follows."""
    name, disabled = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", logging.root.manager.disable
    before = {key: value for key, value in os.environ.items() if key == name}
    os.environ[name] = "1"
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        del os.environ[name]
        os.environ.update(before)


def _refuse_other_inputs(program: ExportedProgram, path: Path) -> None:
    names = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ConfigError(f"{path} takes {len(names)} inputs; a classifier takes images (N, C, H, W) alone: {HOW}")
    batch = shapes[0][0]
    allowed = None if isinstance(batch, int) else program.range_constraints.get(batch.node.expr)
    if isinstance(batch, int) or (allowed is not None and bool(allowed.upper < LARGEST or allowed.lower > 2)):
        least = f"at least {allowed.lower}" if allowed and bool(allowed.lower > 2) else ""
        sizes = least or (f"at most {allowed.upper}" if allowed else f"exactly {batch}")
        raise ConfigError(f"{path} was exported for batches of {sizes}, and all sizes are needed: {HOW}")
