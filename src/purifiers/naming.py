"""Names: how things are called on the command line, and suggestions for mistyped ones."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

HUB = "hf:"
"""Before the name or folder of a Hugging Face model."""
CLASSIFIER_FORMS = (
    "module:function, a .safetensors file with weights of the recipe's network, a torch.export file (.pt2), a folder saved by "
    f"this library or by Hugging Face transformers, {HUB}owner/name of the Hugging Face hub, or a shipped name"
)
"""What names a classifier: the one list for the option's help, the recipe and the error."""


def absolute(text: str) -> str:
    """A path that exists, as one that still holds when a run is opened from another folder; other texts as they are. Links are
    not followed: what they lead to may have another suffix."""
    prefix = HUB if text.startswith(HUB) else ""
    path = Path(text.removeprefix(prefix))
    return prefix + os.path.abspath(path) if path.exists() else text  # noqa: PTH100 (resolve() follows links)


def folder_name(title: str) -> str:
    """A title as the name of a folder: in small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error message about ``name``: the nearest valid name if one is near, else all of them."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid: {', '.join(names)}" if names else ""
