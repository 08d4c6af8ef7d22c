from pathlib import Path

from PIL import Image

from purifiers.data import DATASETS, load_images
from purifiers.data.cifar10 import CLASSES


def test_classes_and_sizes_are_known_without_the_images(tmp_path: Path) -> None:
    cifar10, digits, folder = (DATASETS[name] for name in ("cifar10", "digits", "folder"))
    assert cifar10.class_names() == CLASSES
    assert cifar10.shape() == (32, 32)
    assert digits.shape() == tuple(load_images("digits", "test").images.shape[2:])
    for nowhere in (str(tmp_path), "/nowhere", None):
        assert folder.class_names(path=nowhere) is None
        assert folder.shape(path=nowhere) is None
    for name in ("cat", "ant"):
        (tmp_path / name).mkdir()
        for file in ("a.png", "b.png"):
            (tmp_path / name / file).write_bytes(b"")
    assert folder.class_names(path=str(tmp_path)) == ("ant", "cat")
    assert folder.shape(path=str(tmp_path)) is None, "damaged"
    for file in ("a.png", "b.png"):
        Image.new("RGB", (9, 7)).save(tmp_path / "ant" / file)
    assert folder.shape(path=str(tmp_path)) == (7, 9)
    assert folder.shape(path=str(tmp_path), size=5) == (5, 5)
