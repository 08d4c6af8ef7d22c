"""Labels of image files: their classes by name, from folders or a table, as numbers."""

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from purifiers.errors import DataError, MissingFileError

PREDICTED = "classifier"
"""In place of a table of labels: the frozen classifier's own predictions on the images are their labels."""
UNKNOWN = -1
"""The label of an image before the classifier has predicted it."""
COLUMNS = ["file", "label"]
NAMED = 10  # faults that an error names; it counts all


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order: a line of the text file for each; raises DataError for fewer than
    two, or a name twice."""
    names = [line.strip() for line in _text(path).rstrip().splitlines()]
    if len(names) < 2:
        raise DataError(f"{path} names {len(names)} class(es): it needs a line for each of the classifier's outputs")
    places: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if places.setdefault(spelled(name), line) != line:
            raise DataError(f"{path} has '{name}' twice, in lines {places[spelled(name)]} and {line}: names have to differ")
    return tuple(names)


def read_table(path: Path, folder: Path) -> dict[Path, str]:
    """The label of each image file in a CSV file with the columns ``file``, from ``folder``, and ``label``.

    Raises:
        MissingFileError: no such table, or files in it that are not there.
        DataError: another header, a row without both cells, or a file twice.
    """
    rows = csv.reader(io.StringIO(_text(path)), strict=True)
    found: dict[Path, str] = {}
    try:
        if (header := [cell.strip() for cell in next(rows, [])]) != COLUMNS:
            raise DataError(f"{path}: the first line has to be {','.join(COLUMNS)}; got {','.join(header) or 'nothing'}")
        for row in filter(None, rows):
            name, label = (cell.strip() for cell in row) if len(row) == len(COLUMNS) else ("", "")
            if not (name and label):
                raise DataError(f"{path}, line {rows.line_num}: a row is a file and its label; got {','.join(row)}")
            if (file := Path(os.path.normpath(folder / name))) in found:
                raise DataError(f"{path}, line {rows.line_num}: '{name}' is there twice")
            found[file] = label
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from error
    if not found:
        raise DataError(f"{path} has no rows")
    if missing := [str(file) for file in found if not file.is_file()]:
        advice = f"names are relative to the folder of images, {folder}"
        raise MissingFileError(
            f"{path}: {len(missing)} of {len(found)} files are missing ({advice}): {', '.join(missing[:NAMED])}"
        )
    return found


def numbered(names: Collection[str], classes: Sequence[str], where: str) -> dict[str, int]:
    """The place in ``classes`` of each of ``names``, which come from ``where``; raises DataError for those without one."""
    places = {spelled(name): i for i, name in enumerate(classes)}
    if unknown := [f"'{name}'" for name in sorted(names) if spelled(name) not in places]:
        advice = f"rename them, or take the classifier's own predictions as labels (--labels {PREDICTED})"
        fault = f"{len(unknown)} of {len(names)} labels are not among the {len(classes)} classes"
        raise DataError(f"{where}: {fault}: {', '.join(unknown[:NAMED])}; {advice}")
    return {name: places[spelled(name)] for name in names}


def whole(labels: Mapping[Path, str], where: str) -> dict[Path, str]:
    """``labels`` of the table ``where``. If all are numbers, ``2.0``, as pandas writes it beside missing values, becomes ``2``;
    raises DataError for what is not whole."""
    if not all(re.fullmatch(r"-?\d+(\.\d+)?", label, re.ASCII) for label in labels.values()):
        return dict(labels)
    found = {file: re.sub(r"\.0+$", "", label) for file, label in labels.items()}
    if odd := sorted({label for label in found.values() if not label.isdecimal()}):
        raise DataError(f"{where}: labels that are numbers have to be whole, from 0; got {', '.join(odd[:NAMED])}")
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """``names`` in the order of their labels: numeric where all are numbers, else alphabetical."""
    different = sorted(set(names))
    return sorted(different, key=int) if all(name.isdecimal() for name in different) else different


def spelled(name: str) -> str:
    """What two spellings of a class name have in common: they differ in case, spaces, underscores, zeros before a number."""
    return re.sub(r"[\s_]|^0+(?=\d+$)", "", name).lower()


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: save it as that") from error
