"""Labels of a folder of images: from a table, from class folders that are a part of the classifier's classes, or none."""

from pathlib import Path

import pytest
from PIL import Image

from purifiers.data import ImageSet, load_images
from purifiers.data.labels import in_order
from purifiers.errors import DataError, MissingFileError, PurifiersError

NAMES = ("tench", "goldfish", "great white shark", "cock", "hen")


def both(path: Path, **options: object) -> list[ImageSet]:
    return [load_images("folder", split, path=str(path), **options) for split in ("train", "test")]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Ten images without class folders: the file i.png is of grey level i."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for i in range(10):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / "images" / ("deep" if i % 2 else "") / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def names(tmp_path: Path) -> str:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n\n")
    return str(tmp_path / "classes.txt")


def table(plain: Path, labels: dict[int, str], header: str = "file,label") -> str:
    rows = [f"{'deep/' if i % 2 else ''}{i}.png,{label}" for i, label in labels.items()]
    (path := plain.parent / "labels.csv").write_text("\n".join([header, *rows]))
    return str(path)


def test_images_without_labels_wait_for_the_classifier(plain: Path, tmp_path: Path) -> None:
    parts = both(plain, labels="classifier")
    assert sorted(int(image[0, 0, 0]) for data in parts for image in data.images) == list(range(10))
    assert all(data.unlabelled and data.labels_predicted and data.classes == () for data in parts)
    plain.joinpath("deep").rename(tmp_path / "flat")
    assert all(data.unlabelled for data in both(tmp_path / "flat")), "a folder without subfolders"
    tmp_path.joinpath("flat").rename(tmp_path / "moved")
    assert [len(data) for data in both(tmp_path / "moved")] == [len(data) for data in both(tmp_path / "moved")]


def test_folders_of_the_two_splits_hold_for_images_without_classes(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, kept in (("Train", range(6)), ("val", range(6, 9))):
        (plain / folder).mkdir()
        for i in kept:
            (plain / ("deep" if i % 2 else "") / f"{i}.png").rename(plain / folder / f"{i}.png")
    train, test = both(plain, labels="classifier")
    assert train.images[:, 0, 0, 0].tolist() == list(range(6))
    assert test.images[:, 0, 0, 0].tolist() == list(range(6, 9))
    assert "1 x images outside of train and test" in capsys.readouterr().out


def test_a_table_gives_labels_by_name(plain: Path, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    labels = table(plain, {i: ("hen", "Tench")[i % 2] for i in range(9)})
    parts = both(plain, labels=labels)
    assert all(data.classes == ("Tench", "hen") and not data.labels_predicted for data in parts)
    assert "1 x images that the labels leave out" in capsys.readouterr().out
    for data in parts:
        assert data.labels.tolist() == [0 if level % 2 else 1 for level in data.images[:, 0, 0, 0].tolist()]
    for data in both(plain, labels=labels, classes=names):
        assert data.classes == NAMES
        assert data.labels.tolist() == [0 if level % 2 else 4 for level in data.images[:, 0, 0, 0].tolist()]


def test_numbers_in_a_table_are_those_of_the_outputs(plain: Path) -> None:
    for end in ("", ".0"):
        for data in both(plain, labels=table(plain, {i: f"{100 * i}{end}" for i in range(10)})):
            assert data.classes == ()
            assert data.labels.tolist() == [100 * level for level in data.images[:, 0, 0, 0].tolist()]
    for label in ("2.5", "-1"):
        with pytest.raises(DataError, match=f"whole, from 0; got {label}"):
            both(plain, labels=table(plain, {i: label if i == 3 else str(i) for i in range(10)}))


def test_class_folders_are_a_part_of_the_classifiers_classes(tmp_path: Path, names: str) -> None:
    for folder, level in (("hen", 1), ("Great_White_Shark", 2)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4), (level, i, i)).save(tmp_path / "set" / folder / f"{i}.png")
    for data in both(tmp_path / "set", classes=names):
        assert data.classes == NAMES
        assert data.labels.tolist() == [{1: 4, 2: 2}[level] for level in data.images[:, 0, 0, 0].tolist()]
    (tmp_path / "set" / "hen").rename(tmp_path / "set" / "poodle")
    with pytest.raises(DataError, match=r"1 of 2 labels .*'poodle'.*--labels classifier"):
        both(tmp_path / "set", classes=names)


def test_classes_that_differ_in_their_spelling_alone(tmp_path: Path, names: str) -> None:
    for folder, level in (("ab", 1), ("a b", 2)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4), (level, i, i)).save(tmp_path / "set" / folder / f"{i}.png")
    for data in both(tmp_path / "set"):
        assert data.labels.tolist() == [2 - level for level in data.images[:, 0, 0, 0].tolist()]
    Path(names).write_text("ab\na b\n")
    with pytest.raises(DataError, match="twice"):
        both(tmp_path / "set", classes=names)
    assert in_order(["10", "9", "9"]) == ["9", "10"]
    assert in_order(["b", "10", "a"]) == ["10", "a", "b"]


def test_splits_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("Val", 2)):
        (tmp_path / split).mkdir()
        for i in range(count):
            Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / split / f"{i}.png")
    parts = both(tmp_path)
    assert [len(part) for part in parts] == [3, 2]
    assert all(part.labels_predicted and part.classes == () for part in parts)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("file;label\n0.png;a\n", DataError, "file,label"),
        ("", DataError, "nothing"),
        ("file,label\n", DataError, "no rows"),
        ("file,label\n0.png,a\n./0.png,b\n", DataError, r"line 3: './0.png' is there twice"),
        ("file,label\n0.png,a,b\n", DataError, "line 2"),
        ("file,label\n0.png,\n", DataError, "line 2"),
        ("file,label\n0.png,a\n77.png,b\n78.png,b\n", MissingFileError, "2 of 3 files are missing"),
        ("file,label\n0.png,cow\n2.png,hen\n", DataError, "1 of 2 labels"),
        (b"file,label\n0.png,\xff\xfe\n", DataError, "UTF-8"),
    ],
)
def test_tables_that_are_refused(plain: Path, names: str, content: str | bytes, kind: type[Exception], message: str) -> None:
    path = plain.parent / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(kind, match=message):
        both(plain, labels=str(path), classes=names)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\nb\na\n", r"'a' twice.*1 and 3"), ("a\n", "names 1 class"), ("", "names 0"), ("a\n\n\nb", "'' twice")],
)
def test_names_of_classes_that_are_refused(plain: Path, content: str, message: str) -> None:
    (plain.parent / "names.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        both(plain, labels="classifier", classes=str(plain.parent / "names.txt"))


def test_what_is_not_there(plain: Path) -> None:
    for options in ({"labels": "nowhere.csv"}, {"classes": "nowhere.txt"}):
        with pytest.raises(MissingFileError, match="nowhere"):
            both(plain, **options)
    (plain / "empty").mkdir()
    with pytest.raises(PurifiersError, match="at least two"):
        both(plain / "empty", labels="classifier")
