"""The cache: what decides a result decides its key, in every process; nothing damaged is used."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks import FGSM, PGD
from purifiers.cache import STALE, Cache
from tests.conftest import Linear

SHAPE = (3, 4, 4)
IMAGES = torch.randint(256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Switch(Linear):
    """Behaves differently on images with a bright first pixel, which the tests' images do not have."""

    def __init__(self, mended: bool, **attributes: Any) -> None:
        super().__init__(2, SHAPE)
        self.mended = mended
        vars(self).update(attributes)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.mended else torch.where((images[:, 0, 0, 0] > 2)[:, None], -logits, logits)


def key(model: nn.Module, *others: Any, images: Tensor = IMAGES) -> str:
    return Cache("unused").key(model, images, *others)


def scaled(by: float, images: Tensor) -> Tensor:
    return by * images


def test_a_model_is_known_by_its_weights_attributes_and_code_and_not_by_its_answers() -> None:
    twin = Switch(True)
    assert key(Switch(True)) == key(twin) == key(twin.train())
    with torch.no_grad():
        twin.weight[0, 0] += 1e-7
    hooked = Switch(True)
    hooked.register_forward_hook(lambda module, inputs, output: output + 0)
    keys = [
        key(one)
        for one in (
            Switch(True), twin, Switch(False), hooked,
            Switch(True, settings={"a": [1, (2.0, None)]}), Switch(True, settings={"a": [1, (3.0, None)]}),
            Switch(True, hidden=[Linear(2, SHAPE)]), Switch(True, hidden=[Linear(2, SHAPE, seed=1)]),
            Switch(True, function=lambda x: x), Switch(True, function=lambda x: -x),
            Switch(True, function=partial(scaled, 1.0)), Switch(True, function=partial(scaled, 2.0)),
            type("Switch", (Switch,), {"forward": lambda self, images: Switch.forward(self, images)})(True),
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_everything_else_decides_too() -> None:
    model = Linear(2, SHAPE)
    labels = torch.zeros(6, dtype=torch.int64)
    others: list[tuple[Any, ...]] = [
        (), (0,), (1,), (labels,), (labels + 1,), ({"a": labels},), (None,), (PGD(),), (PGD(num_steps=3),), (FGSM(),),
    ]  # fmt: skip
    keys = [key(model, *one) for one in others] + [key(model, images=IMAGES.flip(0)), key(model, images=IMAGES[:5])]
    assert len(set(keys)) == len(keys)
    assert key(model, PGD()) == key(model, PGD(epsilon=8 / 255))


KNOWN = """
import torch
from functools import partial
from torch import nn

from purifiers.cache import Cache

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.names = {"a", "b", "c", "d", "e"}
        self.function = partial(torch.mul, 2.0)
        self.register_forward_hook(lambda module, inputs, output: output)

    def forward(self, images):
        return self.function(images).flatten(1)

def key():
    return Cache("unused").key(Net(), torch.zeros(2, 3, 1, 1, dtype=torch.uint8), {"seed": 3})
"""


def test_a_key_is_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one has another seed of hashes, and so another order of sets."""
    (tmp_path / "known_module.py").write_text(KNOWN)
    monkeypatch.syspath_prepend(tmp_path)
    import known_module  # type: ignore[import-not-found]

    known_module.Net()  # its hook takes a number
    code = "import known_module; print(known_module.key())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == known_module.key()


def test_a_changed_source_file_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mended between two runs: in another process, here by another module of the same name."""
    keys = []
    for version in ("return x.flatten(1)[:, :2]", "return x.flatten(1)[:, :2].where(x.amax() < 2, 0)"):
        monkeypatch.delitem(sys.modules, "mended_module", raising=False)
        file = tmp_path / str(len(version)) / "mended_module.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        {version}\n")
        monkeypatch.syspath_prepend(file.parent)
        import mended_module  # type: ignore[import-not-found]

        keys.append(key(mended_module.Net()))
    assert keys[0] != keys[1]


def test_entries_come_back_and_damaged_ones_do_not(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"))
    state = {"images": torch.rand(2, 3), "right": torch.tensor([True, False]), "text": "a", "numbers": [1, 0.1, None]}
    assert cache.load("thing", "0" * 64, dict) is None
    assert cache.save("thing", "0" * 64, state) is state
    found = cache.load("thing", "0" * 64, dict)
    assert found is not None and found.keys() == state.keys()
    assert torch.equal(found["images"], state["images"]) and found["numbers"] == [1, 0.1, None]
    assert cache.load("other", "0" * 64, dict) is None
    assert cache.load("thing", "0" * 64, lambda state: state["missing"]) is None
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert cache.load("thing", "0" * 64, dict) is None
    cache.save("thing", "0" * 64, state)
    assert cache.load("thing", "0" * 64, dict) is not None


def test_without_a_folder_nothing_is_kept() -> None:
    cache = Cache(None)
    assert cache.key(Linear(2, SHAPE), IMAGES) == ""
    assert cache.save("thing", "", {"a": 1}) == {"a": 1}
    assert cache.load("thing", "", dict) is None


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file")
    for _ in range(2):
        assert cache.save("thing", "0" * 64, {"a": 1}) == {"a": 1}
    assert capsys.readouterr().out.count("cannot write the cache") == 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    old, new, entry = (tmp_path / name for name in (".a-1.tmp.safetensors", ".a-2.tmp.safetensors", "a-3.safetensors"))
    for path in (old, new, entry):
        path.touch()
    for path in (old, entry):
        os.utime(path, (0, time.time() - STALE - 1))
    Cache(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, entry])
