"""Trained weights that come with the library: one folder each, with config.json, model.safetensors and a model card."""

import json
import os
from pathlib import Path

HUB = "hf:"
"""Before the name or folder of a Hugging Face model."""
_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
"""All of them."""
PURIFIERS = tuple(name for name in NAMES if json.loads((_FOLDER / name / "config.json").read_text())["network"] != "resnet")
"""What ``from_pretrained`` and ``--purifier`` take besides folders; the others are classifiers."""
CLASSIFIERS = tuple(name for name in NAMES if name not in PURIFIERS)
"""What ``--classifier`` takes besides its other forms."""


def locate(name_or_folder: str | Path) -> Path:
    """The folder of shipped weights of this name, or the folder itself: what is no name, and any ``Path``.

    So the text ``./cifar10`` means a folder of the user's, ``cifar10`` never does.
    """
    shipped = isinstance(name_or_folder, str) and name_or_folder in NAMES
    return _FOLDER / name_or_folder if shipped else Path(name_or_folder)


def anywhere(name_or_path: str) -> str:
    """A name of shipped weights as it is, whatever is called so here; a path that exists as one that holds from any folder."""
    return name_or_path if name_or_path in NAMES else absolute(name_or_path)


def absolute(text: str) -> str:
    """A path that exists, as one that still holds when a run is opened from another folder; other texts as they are. Links are
    not followed: what they lead to may have another suffix."""
    prefix = HUB if text.startswith(HUB) else ""
    path = Path(text.removeprefix(prefix))
    return prefix + os.path.abspath(path) if path.exists() else text  # noqa: PTH100 (resolve() follows links)
