import json
from functools import reduce
from pathlib import Path

import pytest
import torch
from torch import nn

from purifiers.errors import CheckpointError, ConfigError, InputError, MissingFileError
from purifiers.networks import CAE, ResNet
from purifiers.registry import NETWORKS, Registry, build_network, fingerprint, load_network, load_weights, place, save_network
from purifiers.storage import save_tensors
from purifiers.version import __version__


def small() -> CAE:
    torch.manual_seed(0)
    return CAE(widths=[4, 6], blocks=[1, 1], skip_every=1)


@pytest.mark.parametrize("make", [small, lambda: ResNet(8, 7, mean=(0.1, 0.2, 0.3))])
def test_a_saved_network_comes_back_the_same(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    network = make().eval()
    save_network(tmp_path, network)
    loaded = load_network(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images), network(images))
    assert fingerprint(loaded) == fingerprint(network)
    assert not loaded.training


def test_fingerprints_see_weights_structure_and_unsaved_buffers() -> None:
    torch.manual_seed(0)
    a, b = ResNet(8), ResNet(8, std=(0.5, 0.5, 0.4))
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) != fingerprint(b)
    relu, gelu = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.GELU())
    gelu.load_state_dict(relu.state_dict())
    assert fingerprint(relu) != fingerprint(gelu)


def test_fingerprints_see_what_a_forward_pass_depends_on_without_weights() -> None:
    a, b = (CAE(widths=[4], blocks=[2], skip_every=skip_every) for skip_every in (0, 1))
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) != fingerprint(b)


def test_own_networks_get_the_fast_layout_and_foreign_ones_keep_theirs() -> None:
    own = place(small(), "cpu")
    assert own.encoder[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    foreign = place(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv3d(3, 3, 3)), "cpu")
    assert foreign[0].weight.is_contiguous()


def test_names_are_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet'"):
        build_network("resnett", {})
    with pytest.raises(ConfigError, match="did you mean 'widths'"):
        build_network("cae", {"width": [3]})
    with pytest.raises(ConfigError, match="cannot build"):
        build_network("cae", {"widths": 3})


@pytest.mark.parametrize("name", ["sys:path", "sys:maxsize"])
def test_what_is_no_class_or_function_is_refused(name: str) -> None:
    for registry in (NETWORKS, Registry[object]("thing")):
        with pytest.raises(ConfigError, match=name):
            registry[name]


def test_damage_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"holds no config\.json"):
        load_network(tmp_path)
    save_network(tmp_path, small())
    config = json.loads((tmp_path / "config.json").read_text())
    damaged = json.dumps(config).replace('"residual": false', '"residual": true')
    assert config.pop("sha256") and damaged != json.dumps(config)
    for content, message in [
        (damaged, "checksum"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        (json.dumps({**config, "arguments": {"widths": reduce(lambda inner, _: [inner], range(800), [])}}), "cannot be built"),
        (json.dumps({**config, "arguments": {**config["arguments"], "widths": [20_000, 20_000]}}), "do not fit the"),
        (json.dumps({**config, "arguments": {**config["arguments"], "blocks": [10**9, 1]}}), "too large"),
        ("[]", "damaged or was not written"),
        (json.dumps({"a": 1}), "damaged or was not written"),
        (json.dumps({**config, "format": 99}), "has format 99; this version reads format 1: upgrade"),
        (json.dumps({**config, "format": "1"}), "has format '1'"),
        (json.dumps({**config, "format": 0}), "has format 0; this version reads format 1: it is damaged"),
        (json.dumps({**config, "network": "cea"}), "did you mean 'cae'"),
        (json.dumps({**config, "network": []}), "cannot be built"),
        (json.dumps({**config, "network": "sys:path"}), "sys:path"),
        (json.dumps({**config, "arguments": None}), "damaged or was not written"),
        (json.dumps({**config, "arguments": {**config["arguments"], "widths": [5, 6]}}), "do not fit"),
    ]:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            load_network(tmp_path)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_weights(ResNet(8), tmp_path / "model.safetensors")


@pytest.mark.parametrize("prefix", ["module", "_orig_mod", "model"])
def test_weights_of_a_module_around_the_network_are_pointed_out(prefix: str, tmp_path: Path) -> None:
    save_tensors(tmp_path / "w.safetensors", {f"{prefix}.{name}": one for name, one in small().state_dict().items()})
    with pytest.raises(CheckpointError, match=f"'{prefix}\\.'"):
        load_weights(small(), tmp_path / "w.safetensors")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(CheckpointError, match="LFS"):
        load_weights(small(), tmp_path / "w.safetensors")


def test_an_argument_that_is_missing_has_its_default(tmp_path: Path) -> None:
    save_network(tmp_path, CAE(widths=[4, 6], blocks=[1, 1], skip_every=2))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["arguments"]["residual"], config["arguments"]["skip_every"], config["version"], config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_network(tmp_path)
    assert isinstance(loaded, CAE)
    assert (loaded.config["residual"], loaded.config["skip_every"]) == (False, 2)


def test_an_argument_of_a_newer_version_says_so(tmp_path: Path) -> None:
    save_network(tmp_path, small())
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"]["attention"] = 4
    del config["sha256"]
    for version, message in [("99.0", "purifiers 99.0 wrote it"), (None, "if a newer version wrote it")]:
        config["version"] = version
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        with pytest.raises(CheckpointError, match=rf"takes no 'attention'.*{message}, this is {__version__}"):
            load_network(tmp_path)


def test_networks_that_could_not_be_loaded_again_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Identity"):
        save_network(tmp_path, nn.Identity())
    assert not list(tmp_path.iterdir())
