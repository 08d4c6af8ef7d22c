"""The Hugging Face hub: purifiers by ``owner/name``, in the layout that they have in a folder."""

# Not huggingface_hub's PyTorchModelHubMixin: as a base class it would make that library a hard dependency, it removes
# config.json before it writes, and it fills our constructor's ``network`` with that key of our config.json, a name.

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purifiers.errors import ConfigError, InputError, MissingFileError, first_line, require
from purifiers.storage import parse_yaml, yaml_text

CARD_FILE = "README.md"
RUN_CARD_FILE = "card.md"
"""The card in a run's folder, which comes when the run is measured."""
FILES = ("config.json", "model.safetensors", CARD_FILE)
"""What is sent and fetched."""
METADATA = {
    "license": "apache-2.0",
    "library_name": "purifiers",
    "pipeline_tag": "image-to-image",
    "tags": ["adversarial-purification", "adversarial-robustness", "image-classification"],
}
"""The front matter of every purifier's card; that of an evaluated one has its evaluation results too."""
_LOADED = re.compile(r'from_pretrained\("[^"]*"\)')


def is_repository(name: str | Path) -> bool:
    """Is ``name`` of the form ``owner/name`` of a repository, and not an existing folder?"""
    return isinstance(name, str) and bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)) and not Path(name).exists()


def download(repo_id: str, **options: Any) -> Path:
    """The folder in the local cache with the files of ``repo_id``, fetched with ``options`` of ``snapshot_download``.

    Raises:
        ConfigError: huggingface_hub is not installed.
        MissingFileError: no such repository or revision, no access to it, or the hub cannot be reached and it is not cached.
    """
    try:
        library, errors = require("huggingface_hub"), require("huggingface_hub.errors")
    except ConfigError as error:
        raise ConfigError(f"there is no folder '{repo_id}'; if that is a name on the Hugging Face hub, {error}") from error
    remote, local = f"'{repo_id}' on the Hugging Face hub", f"there is no folder '{repo_id}', and"
    reasons = {  # by the error, derived ones first
        errors.GatedRepoError: f"{remote} is a gated repository: request access, then run 'hf auth login'",
        errors.RepositoryNotFoundError: f"{local} no such repository on the Hugging Face hub; if it is private, log in with "
        "'hf auth login'",
        errors.RevisionNotFoundError: f"{remote} has no revision '{options.get('revision')}'",
        errors.LocalEntryNotFoundError: f"{local} the Hugging Face hub cannot be reached (offline?); it is not in its cache",
    }
    try:
        return Path(library.snapshot_download(repo_id, allow_patterns=list(FILES), **options))
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError) as error:
        refused = f"{local} the Hugging Face hub refused: {first_line(error)}"
        raise MissingFileError(next((text for kind, text in reasons.items() if isinstance(error, kind)), refused)) from error


def upload(folder: Path, repo_id: str, private: bool | None, token: str | bool | None, **options: Any) -> str:
    """Send ``folder``'s files to ``repo_id``; the rest is as in :meth:`purifiers.Purifier.push_to_hub`."""
    library = require("huggingface_hub")
    try:
        api = library.HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(FILES), **options))
    except Exception as error:  # without a network: what its transport raises depends on its version
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        advice = "; log in with 'hf auth login', or pass a token that may write" if refused else ""
        raise InputError(f"cannot push to '{repo_id}' on the Hugging Face hub: {first_line(error)}{advice}") from error


def card_in(folder: Path) -> str | None:
    """The model card in a purifier's folder, in Markdown; None where there is none."""
    found = next((folder / name for name in (CARD_FILE, RUN_CARD_FILE) if (folder / name).is_file()), None)
    return None if found is None else found.read_text(encoding="utf-8", errors="replace")


def metadata(card: str | None) -> dict[str, Any]:
    """The front matter of a card; empty if there is none, or it cannot be read."""
    front, end, _ = (card or "").partition("\n---\n")
    try:
        found = parse_yaml(front.removeprefix("---\n"), "the card") if end and front.startswith("---\n") else None
    except ConfigError:
        found = None
    return found if isinstance(found, dict) else {}


def example(location: str) -> str:
    """How to use the purifier that ``from_pretrained`` finds at ``location``, in Python."""
    return f"""from purifiers import PurifiedClassifier, Purifier

defended = PurifiedClassifier(Purifier.from_pretrained("{location}"), classifier)"""


def simple_card(name: str, network: Mapping[str, Any], parameters: int) -> str:
    """The card of a purifier of which no measurement is known; ``network`` is of :func:`purifiers.registry.describe`."""
    arguments = ", ".join(f"{key}={value}" for key, value in network.items() if key != "network") or "no arguments"
    return f"""---
{yaml_text(METADATA)}---

# {name}

A purifier ({network["network"]}: {arguments}; {parameters:,} parameters): images in [0,1] in, images in [0,1] out, to be put
in front of an image classifier that adversarial examples would mislead.

```python
{example(name)}
```

Its training and its robustness are not known: measure it with `purifiers audit` before you rely on it.
"""


def addressed(card: str, location: str) -> str:
    """``card`` with ``location`` as where ``from_pretrained`` finds the purifier."""
    return _LOADED.sub(lambda _: f'from_pretrained("{location}")', card)
