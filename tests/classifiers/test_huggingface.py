"""Image classifiers of transformers: built by it at their smallest, saved by it, and read by us."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from purifiers import PurifiedClassifier
from purifiers.classifiers.huggingface import _order, load_transformers
from purifiers.classifiers.load import load_classifier
from purifiers.data import ImageSet, to_float
from purifiers.errors import CheckpointError, ConfigError, MissingFileError, require
from purifiers.registry import fingerprint

transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLASSES = ("blue", "green", "red")


def images_of(size: int, count: int = 4) -> ImageSet:
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    return ImageSet("x", pixels, torch.arange(count) % 3, CLASSES)


def write(folder: Path, model: Any, preprocessor: dict[str, Any] | None) -> str:
    model.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


def resnet(labels: tuple[str, ...] = CLASSES, channels: int = 3) -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=channels, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic",
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config).eval()


def vit_config() -> Any:
    return transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )


def load(source: str, data: ImageSet, **given: Any) -> torch.nn.Module:
    return load_classifier(source, data, **given)


def test_a_model_gives_the_logits_that_transformers_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = resnet(), images_of(32)
    source = write(tmp_path / "m", model, {"do_resize": False, "do_normalize": True, **IMAGENET})
    capsys.readouterr()
    classifier = load(source, data)
    out = capsys.readouterr()
    assert out.out == "classifier       ResNetForImageClassification, mean 0.485,0.456,0.406, std 0.229,0.224,0.225\n"
    assert not out.err
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    images = to_float(data.images)
    with torch.no_grad():
        wanted = model(pixel_values=(images - mean) / std).logits
        torch.testing.assert_close(classifier(images), wanted)
        given = load(f"hf:{source}", data, mean=(0.5,), std=(0.25,))
        torch.testing.assert_close(given(images), model(pixel_values=(images - 0.5) / 0.25).logits)
    defended = PurifiedClassifier(torch.nn.Identity(), classifier).train()
    before = fingerprint(classifier)
    asked = images.requires_grad_(True)
    defended(asked).sum().backward()
    assert asked.grad is not None and asked.grad.abs().max() > 0
    assert fingerprint(classifier) == before
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViTImageProcessorPil", {"do_resize": False, **IMAGENET}),
        ("ViTImageProcessorPil", {"do_resize": False, "do_normalize": False}),
        ("ViTImageProcessorPil", {"do_resize": False, "do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3}),
        ("EfficientNetImageProcessorPil", {"do_resize": False, "include_top": True, **IMAGENET}),
        ("EfficientNetImageProcessorPil", {"do_resize": False, "include_top": False, "rescale_offset": True, **IMAGENET}),
        ("MobileViTImageProcessorPil", {"do_resize": False, "do_center_crop": False, "do_flip_channel_order": True}),
        ("ViTImageProcessorPil", {"do_resize": True, "size": {"height": 24, "width": 24}, "resample": 2, **IMAGENET}),
    ],
    ids=["mean and std", "rescaled", "0..255", "EfficientNet", "with offset", "BGR", "resized"],
)
def test_images_arrive_as_the_models_own_preprocessor_makes_them(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    processor = getattr(transformers, name, None)
    if processor is None:
        pytest.skip(f"this version of transformers has no {name}")
    data, own = images_of(32), processor(**settings)
    model = resnet()
    model.save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    classifier = load_transformers(str(tmp_path), data).eval()
    seen: list[torch.Tensor] = []
    next(part for part in classifier.modules() if isinstance(part, torch.nn.Conv2d)).register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0])
    )
    with torch.no_grad():
        classifier(to_float(data.images))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]
    wanted = torch.as_tensor(own(pictures, return_tensors="pt")["pixel_values"])
    level = 1 / 255 / min(IMAGENET["image_std"]) if settings["do_resize"] else 0.0  # Pillow rounds what it has resized
    torch.testing.assert_close(seen[0], wanted.float(), atol=1e-5 + 1.01 * level, rtol=1e-5)


def test_sizes_that_a_model_takes_and_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asks = {"do_resize": True, "size": {"shortest_edge": 32}, **IMAGENET}
    any_size = write(tmp_path / "resnet", resnet(), asks)
    one_size = write(tmp_path / "vit", transformers.ViTForImageClassification(vit_config()).eval(), asks)
    load(any_size, images_of(32))
    assert "resized" not in capsys.readouterr().out
    assert load(any_size, images_of(64))(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    out = capsys.readouterr().out
    assert "images of 64 x 64 are resized to 32 x 32 inside it" in out
    assert "(the network takes that size too)" in out
    assert load(one_size, images_of(96))(torch.rand(2, 3, 96, 96)).shape == (2, 3)
    assert "(the network takes no other size)" in capsys.readouterr().out
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({"do_resize": False, **IMAGENET}))
    assert load(one_size, images_of(64))(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert "images of 64 x 64 are resized to 32 x 32 inside it" in capsys.readouterr().out
    crop = {"image_processor_type": "ViTImageProcessor", "do_center_crop": True, "crop_size": 24, "size": 28, **IMAGENET}
    assert "resized to 24 x 24" in (load(write(tmp_path / "crop", resnet(), crop), images_of(32)), capsys.readouterr().out)[1]


def test_labels_in_another_order_than_the_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = images_of(32)
    plain, other = (
        load(write(tmp_path / str(i), resnet(labels), {"do_resize": False, **IMAGENET}), data)
        for i, labels in enumerate((("LABEL_0", "LABEL_1", "LABEL_2"), ("Red", "blue", "green")))
    )
    assert capsys.readouterr().out.count("put in the order of the images' classes: blue, green, red") == 1
    images = to_float(data.images)
    torch.testing.assert_close(other(images), plain(images)[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("labels", "classes", "order", "warned"),
    [
        (("tabby cat", "red-fox", "dog"), ("dog", "red-fox", "Tabby_Cat"), [2, 1, 0], False),
        (("02", "00", "01"), ("0", "1", "2"), [1, 2, 0], False),
        (("dog", "cat", "bird"), ("birds", "cats", "dogs"), None, True),
        (("c", "a", "x"), ("a", "b", "c"), None, True),
        (("a", "a", "b"), ("a", "b", "c"), None, True),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("a", "b", "c"), None, False),
        (("a", "b"), ("a", "b", "c"), None, False),
    ],
)
def test_labels_are_matched_by_name_or_pointed_out(
    labels: tuple[str, ...], classes: tuple[str, ...], order: list[int] | None, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _order(dict(enumerate(labels)), classes) == order
    assert ("warning" in capsys.readouterr().out) == warned


def test_a_model_of_grey_images(tmp_path: Path) -> None:
    source = write(tmp_path / "m", resnet(channels=1), {"do_resize": False, "image_mean": [0.5], "image_std": [0.5]})
    assert load(source, images_of(32))(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _only_pickled(folder: Path) -> None:
    _without_weights(folder)
    torch.save(resnet().state_dict(), folder / "pytorch_model.bin")


def _damaged(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unnormalised(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def _broken_preprocessor(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")


def _no_deviation(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGENET, "image_std": [0.2, 0, 0.2]}))


def _list_of_settings(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("[]")


def _with(name: str, **settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def _colours(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGENET, "image_processor_type": "ImageGPTImageProcessor"}))


def _own_code(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForImageClassification": "mine.M"}})
    )


def _headless(folder: Path) -> None:
    shutil.rmtree(folder)
    write(folder, transformers.ViTModel(vit_config(), add_pooling_layer=False), IMAGENET)


def _text(folder: Path) -> None:
    shutil.rmtree(folder)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 8}
    write(folder, transformers.BertForSequenceClassification(transformers.BertConfig(**small)), IMAGENET)


def _multi_label(folder: Path) -> None:
    model = resnet()
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (_without_weights, MissingFileError, "holds no weights as safetensors"),
        (_only_pickled, MissingFileError, r"pickles can run code .*save_pretrained"),
        (_damaged, CheckpointError, "the weights of .* are damaged"),
        (_without_config, MissingFileError, r"holds no config\.json, which every Hugging Face model has"),
        (_broken_config, CheckpointError, r"config\.json is damaged"),
        (_unnormalised, ConfigError, "give --mean and --std"),
        (_broken_preprocessor, CheckpointError, r"preprocessor_config\.json cannot be read"),
        (_no_deviation, ConfigError, r"'image_std': \(0\.2, 0, 0\.2\)"),
        (_with("preprocessor_config", do_rescale=True, rescale_factor=0), ConfigError, "'rescale_factor': 0"),
        (_with("preprocessor_config", do_rescale=True, rescale_factor="x"), ConfigError, "'rescale_factor': 'x'"),
        (_with("preprocessor_config", image_mean=["x"] * 3), ConfigError, "'image_mean': .*x"),
        (_list_of_settings, CheckpointError, r"preprocessor_config\.json cannot be read"),
        (_with("config", embedding_size="x"), ConfigError, "cannot load"),
        (_colours, ConfigError, "no gradient passes"),
        (_own_code, ConfigError, "transformers cannot load"),
        (_headless, CheckpointError, r"holds no weights for classifier\.bias, classifier\.weight, .*at random"),
        (_text, ConfigError, "is no image classifier: transformers has none of the kind 'bert'"),
        (_multi_label, ConfigError, "multi-label"),
    ],
)
def test_what_is_no_usable_model(spoil: Callable[[Path], None], kind: type[Exception], message: str, tmp_path: Path) -> None:
    write(tmp_path / "m", resnet(), {"do_resize": False, **IMAGENET})
    spoil(tmp_path / "m")
    with pytest.raises(kind, match=message):
        load(f"hf:{tmp_path / 'm'}", images_of(32))


def test_other_wrong_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "m", resnet(("a", "b")), {"do_resize": False, **IMAGENET})
    with pytest.raises(ConfigError, match=r"2 classes, and the images have 3 \(blue, green, red\)"):
        load(source, images_of(32))
    with pytest.raises(ConfigError, match="belongs to a Hugging Face model: give its folder"):
        load(f"{source}/model.safetensors", images_of(32))
    with pytest.raises(MissingFileError, match=r"there is no folder \./nowhere"):
        load("hf:./nowhere", images_of(32))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingFileError, match=r"cannot get 'owner/nothing' from the Hugging Face hub.*pass the folder"):
        load("hf:owner/nothing", images_of(32))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        ConfigError, match=r"this needs transformers, which is not installed: pip install 'purifiers\[transformers\]'"
    ):
        require("transformers")
