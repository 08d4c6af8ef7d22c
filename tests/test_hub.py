"""Purifiers on the Hugging Face hub: the real huggingface_hub, talking to a hub of forty lines on this machine."""

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

from purifiers import Purifier
from purifiers.baselines import JPEG
from purifiers.errors import ConfigError, InputError, MissingFileError
from purifiers.hub import is_repository
from purifiers.networks import CAE

COMMIT = "0123456789" * 4
API = "/api/models/me/clean"


class Hub(BaseHTTPRequestHandler):
    """One repository, me/clean, of one commit."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("authorization") != "Bearer hf_right":
            self.answer({"error": "who are you?"}, 401)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{constants.ENDPOINT}/me/clean"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]})
        elif self.path.startswith(f"{API}/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            sent = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
            self.files.update({path: base64.b64decode(content) for path, content in sent.items()})
            self.answer({"commitUrl": f"{constants.ENDPOINT}/me/clean/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        path, name = self.path.partition("?")[0], self.path.rpartition("/")[2]
        if path in (API, f"{API}/revision/main", f"{API}/revision/{COMMIT}"):
            self.answer({"id": "me/clean", "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{API}/revision/"):
            self.answer({"error": "no"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif path == f"{API}/tree/{COMMIT}":
            self.answer([{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in self.files.items()])
        elif path.startswith("/me/clean/resolve/"):
            self.answer(self.files[name], headers={"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """The files of me/clean on a hub that runs here; nothing is asked of the real one."""
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, of a binary library
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield files
    server.shutdown()
    server.server_close()


def small() -> Purifier:
    torch.manual_seed(0)
    return Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1))


def test_pushed_and_loaded_again_then_without_the_network(
    hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    purifier, images = small(), torch.rand(2, 3, 8, 8)
    url = purifier.push_to_hub("me/clean", token="hf_right")
    assert url == f"{constants.ENDPOINT}/me/clean/commit/{COMMIT}"
    assert sorted(hub) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard(hub["README.md"].decode())
    about = card.data.to_dict()
    assert (about["license"], about["library_name"]) == ("apache-2.0", "purifiers")
    assert card.data.pipeline_tag == "image-to-image"
    assert 'Purifier.from_pretrained("me/clean")' in card.text
    purifier.save_pretrained(tmp_path / "saved", card=hub["README.md"].decode())
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == hub
    for revision in (None, "main", COMMIT):
        loaded = Purifier.from_pretrained("me/clean", revision=revision, cache_dir=tmp_path / "cache")
        assert torch.equal(loaded(images), purifier(images))
    with pytest.raises(MissingFileError, match="'me/clean' on the Hugging Face hub has no revision 'v9'"):
        Purifier.from_pretrained("me/clean", revision="v9", cache_dir=tmp_path / "cache")
    with pytest.raises(MissingFileError, match="no folder 'me/cleen', and no such repository on the Hugging Face hub"):
        Purifier.from_pretrained("me/cleen", cache_dir=tmp_path / "cache")

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(MissingFileError, match=r"cannot be reached"):
        Purifier.from_pretrained("me/clean", cache_dir=tmp_path / "empty")
    for options in ({}, {"local_files_only": True}):
        loaded = Purifier.from_pretrained("me/clean", cache_dir=tmp_path / "cache", **options)
        assert torch.equal(loaded(images), purifier(images))
    with pytest.raises(MissingFileError, match="not in its cache"):
        Purifier.from_pretrained("me/other", cache_dir=tmp_path / "cache", local_files_only=True)


def test_who_may_not_push_is_told_what_to_do(hub: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"'me/clean'.*401.*log in with 'hf auth login'"):
        small().push_to_hub("me/clean", token="hf_wrong")
    with pytest.raises(InputError, match="my purifier"):
        small().push_to_hub("my purifier", token="hf_right")
    assert not hub


def test_a_card_is_kept_as_long_as_it_is_of_these_weights(tmp_path: Path) -> None:
    purifier = Purifier.from_pretrained("cifar10")
    purifier.save_pretrained(tmp_path / "same")
    card = (tmp_path / "same" / "README.md").read_text()
    assert "model-index:" in card
    Purifier.from_pretrained(tmp_path / "same").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card
    with torch.no_grad():
        next(purifier.parameters()).add_(0.1)
    assert purifier.card is None
    purifier.save_pretrained(tmp_path / "other")
    assert "are not known" in (tmp_path / "other" / "README.md").read_text()
    purifier.save_pretrained(tmp_path / "other", card="my own")
    purifier.save_pretrained(tmp_path / "other")  # what a user wrote is not overwritten
    assert (tmp_path / "other" / "README.md").read_text() == "my own"


def test_a_network_without_weights_has_a_card_too(tmp_path: Path) -> None:
    Purifier(JPEG(quality=60)).save_pretrained(tmp_path)
    assert "jpeg: quality=60; 0 parameters" in (tmp_path / "README.md").read_text()
    assert Purifier.from_pretrained(tmp_path).network.quality == 60


def test_a_push_without_a_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    with pytest.raises(InputError, match="no route to host"):
        small().push_to_hub("me/clean")


def test_the_hubs_library_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    told = r"this needs huggingface_hub, which is not installed: pip install 'purifiers\[hub\]'"
    with pytest.raises(ConfigError, match=f"there is no folder 'me/clean'; if that is a name on the Hugging Face hub, {told}"):
        Purifier.from_pretrained("me/clean")
    with pytest.raises(ConfigError, match=f"^{told}"):
        small().push_to_hub("me/clean")


def test_what_looks_like_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert is_repository("me/clean-1.0")
    for other in ("cifar10", "runs/demo", "./me/clean", "/me/clean", "me/clean/", "a/b/c", "~/clean", Path("me/clean")):
        assert not is_repository(other), other


def test_a_card_with_measurements_stays_with_its_weights(tmp_path: Path) -> None:
    first, second = small(), small()
    with torch.no_grad():
        next(second.parameters()).add_(1)
    first.save_pretrained(tmp_path, card="---\nmodel-index: []\n---\n# Mine\n\n99 %\n")
    first.save_pretrained(tmp_path)
    assert "99 %" in (tmp_path / "README.md").read_text()
    second.save_pretrained(tmp_path)
    assert "99 %" not in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# A text of mine, without numbers\n")
    first.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# A text of mine, without numbers\n"
