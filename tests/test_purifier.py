from pathlib import Path

import pytest
import torch
from torch import nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.errors import CheckpointError, ConfigError, InputError, MissingFileError
from purifiers.networks import CAE, ResNet


def small() -> Purifier:
    torch.manual_seed(0)
    return Purifier(CAE(widths=[4, 6], blocks=[1, 1], skip_every=1))


def test_starts_in_evaluation_mode_and_gives_the_same_answer_twice() -> None:
    purifier = small()
    images = torch.rand(2, 3, 9, 11)
    assert not purifier.training
    assert torch.equal(purifier(images), purifier(images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 8, 8), r"unsqueeze\(0\)"),
        (torch.rand(8, 8), r"\(N, C, H, W\)"),
        (torch.rand(2, 1, 8, 8), "3 channels"),
        (torch.rand(2, 8, 8, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8), "divide by 255"),
        (torch.rand(1, 3, 8, 8) * 255, "divide by 255"),
        (torch.randn(1, 3, 8, 8), "do not normalise"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 3, 8, 8), float("inf")), "infinite"),
        (torch.rand(1, 3, 8, 8).double(), "float64"),
        (torch.rand(1, 3, 8, 8).numpy(), "torch.Tensor; got ndarray"),
        (torch.rand(1, 3, 8, 8).half(), "images are torch.float16, the purifier torch.float32"),
        (torch.empty(1, 3, 8, 8, device="meta"), "images are on meta, the purifier on cpu"),
        (torch.empty(1, 3, 8, 8, device="meta").half(), "images are torch.float16, the purifier torch.float32"),
        (torch.rand(1, 3, 8, 8).to_sparse(), "to_dense"),
        (torch.rand(1, 3, 0, 8), "pixel"),
    ],
)
def test_wrong_images_are_refused_with_the_cure(images: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small()(images)


def test_an_empty_batch_is_an_empty_batch() -> None:
    assert small()(torch.empty(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_save_and_load(tmp_path: Path) -> None:
    purifier, images = small(), torch.rand(2, 3, 8, 8)
    purifier.save_pretrained(tmp_path / "p")
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = Purifier.from_pretrained(tmp_path / "p")
    assert torch.equal(loaded(images), purifier(images))
    assert not loaded.training


def test_a_card_is_of_the_network_beside_it_and_the_users_stays(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    Purifier.from_pretrained("cifar10-paper").save_pretrained(tmp_path)
    assert "model-index" in (tmp_path / "README.md").read_text()
    small().save_pretrained(tmp_path)
    simple = (tmp_path / "README.md").read_text()
    assert "model-index" not in simple
    (tmp_path / "README.md").write_text(f"{simple}\nMine.")
    Purifier.from_pretrained("cifar10-paper").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("Mine.")


def test_numbers_of_weights_that_are_gone_are_not_kept(tmp_path: Path) -> None:
    Purifier.from_pretrained("cifar10-paper").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    small().save_pretrained(tmp_path)
    assert "model-index" not in (tmp_path / "README.md").read_text()


def test_a_card_in_no_encoding_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\ntitle: caf\xe9\n---\n")
    small().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes().startswith(b"---\ntitle: caf\xe9")
    assert Purifier.from_pretrained(tmp_path)


def test_what_is_no_purifier_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no purifier at 'nowhere'"):
        Purifier.from_pretrained("nowhere")
    small().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        Purifier.from_pretrained(tmp_path)
    from purifiers.registry import save_network

    save_network(tmp_path / "classifier", ResNet(8))
    with pytest.raises(CheckpointError, match="a classifier"):
        Purifier.from_pretrained(tmp_path / "classifier")


def test_the_defended_classifier_is_the_composition_and_differentiable() -> None:
    purifier, classifier = small(), ResNet(8)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    defended = PurifiedClassifier(purifier, classifier)
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    logits = defended(images)
    torch.testing.assert_close(logits, classifier.eval()(purifier(images)))
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().sum() > 0
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


def test_modes_of_the_users_modules_are_left_as_found() -> None:
    classifier, network = ResNet(8).train(), CAE(widths=[4, 6], blocks=[1, 1]).train()
    classifier.bn1.eval()
    modes = [part.training for module in (network, classifier) for part in module.modules()]
    defended = PurifiedClassifier(network, classifier)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(defended(images), defended(images))  # batch statistics would move
    defended.train()
    defended.eval()
    assert [part.training for module in (network, classifier) for part in module.modules()] == modes


class Configured(nn.Module):
    """A module of another library: its configuration is an object."""

    config = object()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images / 2


def test_any_module_is_a_purifier() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(Purifier(Configured())(images), images / 2)
    assert torch.equal(Purifier(Configured(), validate=False)(images * 3), images * 3 / 2)
    with pytest.raises(InputError, match="Configured"):
        Purifier(Configured()).save_pretrained("nowhere")


def test_loads_onto_a_device_and_into_a_dtype() -> None:
    purifier = Purifier.from_pretrained("cifar10", device="cpu", dtype=torch.bfloat16)
    assert purifier(torch.rand(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_is_no_device_and_no_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no device 'cuda:99'"):
        Purifier.from_pretrained("cifar10-cpu", device="cuda:99")
    for dtype in ("float32", torch.int64, torch.float64):
        with pytest.raises(InputError, match="dtype"):
            Purifier.from_pretrained("cifar10-cpu", dtype=dtype)  # type: ignore[arg-type]


def test_parts_in_the_wrong_place_are_refused() -> None:
    for purifier, classifier, message in [
        ("runs/demo", ResNet(8), r"purifier must be a torch.nn.Module; got str; .*from_pretrained\('runs/demo'\)"),
        (small(), "cifar10-resnet56", r"load_classifier\('cifar10-resnet56'\)"),
        (small(), lambda x: x, "classifier must be a torch.nn.Module; got function"),
        (ResNet(8), small(), "the purifier comes first"),
    ]:
        with pytest.raises(InputError, match=message):
            PurifiedClassifier(purifier, classifier)  # type: ignore[arg-type]


def test_training_mode_never_reaches_the_classifier() -> None:
    classifier = ResNet(8)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    purifier = small()
    statistics = purifier.network.encoder[0][1].running_mean.clone()
    PurifiedClassifier(purifier, classifier).train()(torch.rand(4, 3, 16, 16))
    assert not torch.equal(purifier.network.encoder[0][1].running_mean, statistics)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


def test_half_precision_works_where_both_are_half() -> None:
    purifier = small().to(torch.bfloat16)
    assert purifier(torch.rand(1, 3, 8, 8).to(torch.bfloat16)).dtype == torch.bfloat16


def test_moves_and_casts_like_any_module() -> None:
    defended = PurifiedClassifier(small(), nn.Sequential(nn.Flatten(), nn.LazyLinear(4))).to("meta")
    assert {p.device.type for p in defended.purifier.parameters()} == {"meta"}


def test_traces_for_export_and_compilation() -> None:
    purifier, images = small(), torch.rand(2, 3, 16, 16)
    program = torch.export.export(purifier, (images,))
    torch.testing.assert_close(program.module()(images), purifier(images))
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(purifier, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(images), purifier(images))
    assert len(graphs) == 1  # fullgraph: nothing in it waits for a value


def test_a_classifier_may_change_its_images_in_place() -> None:
    images = torch.rand(2, 3, 4, 4) - 0.5
    before = images.clone()
    assert PurifiedClassifier(nn.Identity(), nn.ReLU(inplace=True))(images).min() >= 0
    assert torch.equal(images, before)
