"""Files for other programs, run by those programs."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.baselines import JPEG, SOAP, Adaptive, BitDepth, Blend, Median, Noisy, Nothing
from purifiers.cli import main
from purifiers.errors import ConfigError
from purifiers.export import program_file as export
from purifiers.networks import CAE, ResNet
from purifiers.recipes.load import load_recipe, recipe_text
from purifiers.runs import Run
from purifiers.storage import save_tensors

SHAPES = [(1, 3, 32, 32), (3, 3, 17, 64), (1, 3, 1, 1), (2, 3, 30, 31)]


def purifier() -> Purifier:
    torch.manual_seed(0)
    network = CAE(widths=[4, 6], blocks=[1, 1], skip_every=1, residual=True)
    nn.init.normal_(network.decoder[-1].weight, std=0.3)  # a residual network starts as the identity
    return Purifier(network)


def run_file(path: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_purifier_and_classifier_are_one_onnx_file_for_any_size(tmp_path: Path) -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    defended = PurifiedClassifier(purifier(), nn.Sequential(pooled, nn.Linear(4, 10)))
    model = export.exportable(defended.purifier, defended.classifier)
    said = export.about("mine", defended.purifier, "theirs")
    found = export.export_onnx(model, tmp_path / "both.onnx", said)
    assert found <= export.TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["both.onnx"]
    for shape in SHAPES:
        images = torch.rand(shape)
        torch.testing.assert_close(run_file(tmp_path / "both.onnx", images), defended(images).detach(), atol=1e-4, rtol=0)

    file = onnx.load(tmp_path / "both.onnx")
    onnx.checker.check_model(file)
    assert (file.opset_import[0].version, file.producer_name) == (18, "purifiers")
    assert {entry.key: entry.value for entry in file.metadata_props}.items() >= said.items()
    assert json.loads(said["config"])["widths"] == [4, 6]
    (put,), (out,) = file.graph.input, file.graph.output
    assert [dim.dim_param or dim.dim_value for dim in put.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    assert out.name == "logits"


def test_a_program_of_torch_export_for_any_size(tmp_path: Path) -> None:
    cae = purifier()
    export.export_torch(export.exportable(cae), tmp_path / "cae.pt2")
    loaded = torch.export.load(tmp_path / "cae.pt2").module()
    for shape in SHAPES:
        images = torch.rand(shape)
        torch.testing.assert_close(loaded(images), cae(images).detach())


def test_an_opset_and_one_size_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Purifier(Blend(BitDepth(3), share=0.25)).save_pretrained(tmp_path / "saved")
    target = tmp_path / "new" / "bits.onnx"
    assert main(["export", str(tmp_path / "saved"), str(target), "--opset", "20", "--size", "12"]) == 0
    out = capsys.readouterr().out
    assert "opset 20; images, float32 (batch, 3, 12, 12) in [0,1] -> purified images" in out
    assert "checked against PyTorch on random images: off by" in out
    assert onnx.load(target).opset_import[0].version == 20
    images = torch.rand(5, 3, 12, 12)
    torch.testing.assert_close(run_file(target, images), 0.75 * (images * 7).round() / 7 + 0.25 * images)


def test_weights_of_a_runs_network_behind_it_with_their_own_normalisation(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read of the data, which may be away: the classifier is tried on noise."""
    monkeypatch.setattr("purifiers.data.load_images", lambda *_, **__: pytest.fail("data were read"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.folder, "run", ignore=shutil.ignore_patterns("cache"))
    torch.manual_seed(0)
    network = ResNet(depth=8, width=4, num_classes=10).eval()
    for name in ("c", "other"):
        save_tensors(Path(f"{name}.safetensors"), network.state_dict())
    settings = [("classifier.source", "c.safetensors"), ("classifier.mean", [0.5]), ("classifier.std", [0.25])]
    shape = [("classifier.network", {"network": "resnet", "depth": 8, "width": 4})]
    Path("run/recipe.yaml").write_text(recipe_text(load_recipe("run/recipe.yaml", [*shape, *settings])))
    images = torch.rand(2, 3, 16, 16)
    purified = Purifier.from_pretrained("run")(images).detach()
    words = ["export", "run", "c.pt2", "--format", "torch", "--size", "16"]  # tracing one size is much faster
    assert main([*words, "--classifier", "c.safetensors"]) == 0
    found = torch.export.load("c.pt2").module()(images)
    torch.testing.assert_close(found, network(2 * purified - 0.5).detach(), atol=1e-4, rtol=0)
    models = []

    def untraced(model: nn.Module, path: Path, **options: object) -> float:
        models.append(model)
        path.touch()
        return 0.0

    monkeypatch.setattr(export, "export_torch", untraced)
    assert main([*words, "--classifier", "other.safetensors"]) == 0
    torch.testing.assert_close(models[0](images), network(purified), atol=1e-4, rtol=0)


def test_eight_bits_of_a_run_and_what_they_lose(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "small.onnx"
    assert main(["export", str(tiny_run.folder), str(target), "--int8", "--size", "16"]) == 0
    out = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    loss = re.search(r"on 24 test images of digits, against float: outputs off by at most ([\d.]+)\n.*: ([\d.]+) dB", out)
    assert loss is not None, out
    assert 0 < float(loss[1]) < 0.5
    assert 20 < float(loss[2]) < 100
    assert re.search(r"accuracy with classifier: [\d.]+% in float, [\d.]+% in 8 bits; the same class for [\d.]+%", out)
    file = onnx.load(target)
    assert {tensor.data_type for tensor in file.graph.initializer} >= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    assert {entry.key: entry.value for entry in file.metadata_props}["quantised"] == "8 bits, static"
    # What it said is so: the same images, by hand.
    images = tiny_run.images("test").images / 255
    difference = run_file(target, images) - tiny_run.purifiers["student"](images).detach()
    assert difference.abs().max().item() == pytest.approx(float(loss[1]), abs=2e-3)


def test_eight_bits_in_front_of_a_classifier_of_images_without_labels(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own predictions are the labels."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(tiny_run.images("test").images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{i}.png")
    words = ["--classifier", str(tiny_run.checkpoint("classifier")), "--images", str(tmp_path / "images"), "--size", "16"]
    assert main(["export", "cifar10-cpu", str(tmp_path / "small.onnx"), "--int8", *words]) == 0
    shares = re.search(r"accuracy with .*: ([\d.]+)% in float, ([\d.]+)% in 8 bits", capsys.readouterr().out)
    assert shares is not None and float(shares[1]) > 50 and float(shares[2]) > 50


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (JPEG(), "jpeg cannot be exported: it compresses with Pillow"),
        (Blend(Median(), share=0.5), "median cannot be exported: it computes with SciPy"),
        (Adaptive(CAE(widths=[4], blocks=[1])), "adaptive cannot be exported: it follows gradients of its own"),
        (SOAP(classifier=ResNet(8, width=4)), "soap cannot be exported: it follows gradients"),
        (Noisy(BitDepth()), "noisy cannot be exported: it draws random numbers"),
    ],
)
def test_what_cannot_be_exported_says_why(network: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        export.exportable(Purifier(network))


@pytest.mark.parametrize(("error", "told"), [(2e-4, r"0\.0002"), (torch.nan, "nan")])
def test_a_file_that_is_not_the_model_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, told: str
) -> None:
    monkeypatch.setattr(export, "run_onnx", lambda session, images: images + error)
    with pytest.raises(ConfigError, match=f"differs from PyTorch's by {told}"):
        export.export_onnx(export.exportable(Purifier(Nothing())), tmp_path / "x.onnx", {}, size=4)
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_one_size_is_told_how(tmp_path: Path) -> None:
    model = nn.Sequential(BitDepth(8), nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval()
    with pytest.raises(ConfigError, match="--size"):
        export.export_torch(model, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())
    assert export.export_torch(model, tmp_path / "x.pt2", size=8) <= export.TOLERANCE


def test_mistakes_are_told_before_anything_is_computed(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, grey = tmp_path / "saved", tmp_path / "saved" / "grey"
    purifier().save_pretrained(saved)
    Purifier(CAE(widths=[4], blocks=[1], channels=1)).save_pretrained(grey)
    (tmp_path / "one").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one" / "a.png")
    for name in ("ant", "cat"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for file in ("a.png", "b.png"):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "two" / name / file)
    for words, message in [
        ([saved, "x.pt2"], "ends in .onnx"),
        ([saved, "x.onnx", "--format", "torch"], "ends in .pt2"),
        ([saved, "x.pt2", "--format", "torch", "--int8"], "--int8 is for ONNX"),
        ([saved, "x.onnx", "--int8"], "--images DIR"),
        ([saved, "x.onnx", "--int8", "--images", tmp_path / "one"], "needs images, at least two"),
        ([tiny_run.folder, "x.onnx", "--int8", "--size", "20"], "images of digits, which are 16 by 16"),
        ([grey, "x.onnx", "--int8", "--images", tmp_path / "two"], "takes images of 1 channels"),
        ([saved, "x.onnx", "--images", tmp_path], "--images has no effect"),
        ([saved, "x.onnx", "--mean", "0.5", "--std", "0.5"], "--mean has no effect"),
        ([saved, "x.onnx", "--classifier", "my_module:build"], "cannot import the classifier 'my_module:build'"),
        ([saved, "x.onnx", "--classifier", "cifar10-paper"], "'cifar10-paper' is a purifier"),
        (
            [saved, "x.onnx", "--classifier", "cifar10-resnet56", "--recipe", "folder", "--images", "two"],
            "and the images have 2",
        ),
        ([saved, "x.onnx", "--opset", "3"], "opset 3 cannot be written here: 18 to "),
        ([saved, "x.onnx", "--opset", "999"], "opset 999 cannot be written here"),
        (["cifar11", "x.onnx"], "did you mean 'cifar10'?"),
    ]:
        monkeypatch.chdir(tmp_path)
        assert main(["export", *map(str, words)]) == 1, words
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "saved", "two"]


def test_the_libraries_are_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript, which is not installed: pip install 'purifiers\[onnx\]'"):
        export.export_onnx(export.exportable(purifier()), tmp_path / "x.onnx", {})
