"""Trained weights that come with the library: one folder each, with config.json, model.safetensors and a model card."""

import json
import os
from pathlib import Path

HUB = "hf:"
"""Before the name or folder of a Hugging Face model."""
MEMORY = "memory"
"""In a recipe: the data set of images that were passed from Python, and ``memory:Class`` a classifier that was."""
_FOLDER = Path(__file__).parent
_OUTPUTS = {path.parent.name: json.loads(path.read_bytes())["output"] for path in sorted(_FOLDER.glob("*/config.json"))}
NAMES = tuple(_OUTPUTS)  # all of them
PURIFIERS = tuple(name for name, output in _OUTPUTS.items() if output == "images")
"""Names that ``from_pretrained`` and ``--purifier`` take besides folders."""
CLASSIFIERS = tuple(name for name, output in _OUTPUTS.items() if output == "logits")
"""Names that ``load_classifier`` and ``--classifier`` take besides the other forms."""


def list_purifiers() -> list[str]:
    """The names of the purifiers that ship: what ``Purifier.from_pretrained`` takes."""
    return list(PURIFIERS)


def list_classifiers() -> list[str]:
    """The names of the classifiers that ship: what ``load_classifier`` takes."""
    return list(CLASSIFIERS)


def locate(name_or_folder: str | Path) -> Path:
    """The folder of shipped weights of this name, or the folder itself: any other text, and any ``Path``.

    So the text ``./cifar10`` means a folder of the user's, ``cifar10`` never does.
    """
    shipped = isinstance(name_or_folder, str) and name_or_folder in NAMES
    return _FOLDER / name_or_folder if shipped else Path(name_or_folder)


def anywhere(name_or_path: str) -> str:
    """A shipped name unchanged, even if a file here has that name; an existing path made absolute."""
    return name_or_path if name_or_path in NAMES else absolute(name_or_path)


def absolute(text: str) -> str:
    """An existing path made absolute, so that a run opened from another folder still finds it; other texts unchanged. Links are
    not followed: their target may have another suffix."""
    prefix = HUB if text.startswith(HUB) else ""
    path = Path(text.removeprefix(prefix))
    return prefix + os.path.abspath(path) if path.exists() else text  # noqa: PTH100 (resolve() follows links)
