"""Trained weights that come with the library: one folder each, with config.json, model.safetensors and a model card."""

from pathlib import Path

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
"""What ``from_pretrained`` and ``--purifier`` take besides folders."""


def locate(name_or_folder: str | Path) -> Path:
    """The folder of shipped weights of this name, or the folder itself where the name is none (``./cifar10`` never is)."""
    return _FOLDER / str(name_or_folder) if str(name_or_folder) in NAMES else Path(name_or_folder)
