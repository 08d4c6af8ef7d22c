"""Opening what was trained: a run's folder, shipped weights, or a purifier and the classifier behind it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from purifiers import weights
from purifiers.classifiers.load import load_classifier
from purifiers.data import DATASETS, ImageSet
from purifiers.data.labels import PREDICTED
from purifiers.device import find_device
from purifiers.errors import ConfigError, MissingFileError, nearest
from purifiers.purifier import Purifier
from purifiers.recipes.load import NAMES, load_recipe, training_differences, variant_recipes
from purifiers.recipes.schema import Recipe
from purifiers.registry import CONFIG_FILE, load_network
from purifiers.runs.layout import CACHE, CLASSES_FILE, LATENT, RECIPE_FILE, STATE_FILE, STUDENTS, TEACHERS, Run
from purifiers.storage import load_state, parse_json


def open_weights(recipe: Recipe, trained: Recipe, folder: Path, device: str = "auto", images: ImageSet | None = None) -> Run:
    """A run in ``folder`` whose classifier and student are the shipped weights that ``recipe`` names; nothing is trained.

    Args:
        recipe: its ``classifier.source`` may name another classifier to protect.
        trained: the same as it is in the library.
        images: instead of the recipe's test images, which then need not be on disk; of their size and classes.

    Raises:
        ConfigError: no weights of this recipe come with the library.
        MissingFileError, CheckpointError: see :meth:`Purifier.from_pretrained` and :func:`load_classifier`.
    """
    source = recipe.classifier.source or recipe.weights.get("classifier")
    if "student" not in recipe.weights or source is None:
        raise ConfigError(f"no weights of the recipe '{recipe.name}' come with the library: train it first")
    run = Run(recipe, folder, find_device(device), folder / CACHE, trained=trained)
    _load_classifier(run, source, images)
    run.purifiers["student"] = Purifier.from_pretrained(recipe.weights["student"]).placed(run.device)
    return run


def open_run(recipe: Recipe, folder: Path, device: str = "auto", images: ImageSet | None = None) -> Run:
    """Open a folder that training filled, with everything that is finished in it; for the arguments see :func:`open_weights`.

    Raises:
        MissingFileError: the folder holds no trained student, or no classifier.
        CheckpointError, ConfigError: a damaged file, or another network than that of the trained classifier.
    """
    run = Run(recipe, folder, find_device(device), folder / CACHE)
    if not (run.checkpoint("student") / CONFIG_FILE).is_file():
        advice = f"'purifiers train --output {folder}' resumes where it stopped"
        raise MissingFileError(f"{folder} holds no trained student; {advice}")
    run.trained = load_recipe(folder / RECIPE_FILE)
    _load_classifier(run, recipe.classifier.source or str(run.checkpoint("classifier")), images)
    run.purifiers = _load_purifiers({stage: run.checkpoint(stage) for stage in (*TEACHERS, *STUDENTS)}, run)
    files = {title: run.variant(title) / RECIPE_FILE for title in recipe.variants}
    there = {title: load_recipe(file) for title, file in files.items() if file.is_file()}
    expected = variant_recipes(run.trained.model_copy(update={"variants": recipe.variants})) if there else {}
    same = [title for title, found in there.items() if not training_differences(found, expected[title])]
    run.variants = _load_purifiers({title: run.variant(title) for title in same}, run)
    for stage in (*recipe.classifiers(), *LATENT, *run.purifiers):
        if (state := run.checkpoint(stage) / STATE_FILE).is_file():
            run.histories[stage] = load_state(state)["history"]
        elif stage in run.purifiers:  # of 0 epochs
            run.histories[stage] = []
    return run


def _load_classifier(run: Run, source: str, images: ImageSet | None) -> None:
    """The run's classifier from ``source``, and its test images, which may be passed."""
    config = run.recipe.classifier
    if run.trained is not None and config.source is None and config.network != run.trained.classifier.network:
        raise ConfigError("classifier.network describes the weights of a classifier.source: the trained one keeps its own")
    if images is not None:
        run.take(images, "test")
    data = run.images("test")
    if run.trained is not None and config.source == run.trained.classifier.source:
        file, known = run.folder / CLASSES_FILE, DATASETS[run.trained.data.name].class_names(**run.trained.data.source())
        known = tuple(parse_json(file.read_bytes(), str(file))) if file.is_file() else known
        if known and not data.classes:
            run.splits["test"] = data = replace(data, classes=known)
        elif known and known != data.classes:
            own, theirs = (", ".join([*names[:10], *(["..."] if len(names) > 10 else [])]) for names in (known, data.classes))
            advice = f"rename their folders, name a --classifier of theirs, or take its predictions: --labels {PREDICTED}"
            raise ConfigError(f"the classifier's classes are {own}; these images have {theirs}: {advice}")
    run.classifiers["classifier"] = load_classifier(source, data, **config.options())


def is_run(what: str) -> bool:
    """Whether ``what`` is the folder of a run, not a shipped name."""
    return (weights.locate(what) / RECIPE_FILE).is_file()


def recipe_of(what: str, recipe: str | None = None) -> str | Path | None:
    """The recipe, by name or file, that a purifier was trained with, or None; for one without a run ``recipe``, if any."""
    if is_run(what):
        if recipe is not None:
            raise ConfigError(f"{weights.locate(what)} is a run, which has its own recipe: leave out --recipe")
        return weights.locate(what) / RECIPE_FILE
    if recipe is not None or what not in weights.PURIFIERS:
        return recipe
    return next((name for name in NAMES if load_recipe(name).weights.get("student") == what), None)


def open_defended(
    what: str,
    overrides: Sequence[str | tuple[str, Any]],
    folder: Path,
    recipe: str | None = None,
    device: str = "auto",
    images: Callable[[Recipe], ImageSet] | None = None,
) -> Run:
    """Open a purifier and the classifier behind it by name or folder.

    Args:
        what: a run's folder; or a purifier, by its shipped name or folder, in front of the classifier of ``recipe`` or, for a
            shipped one, of the recipe that trained it: a run in ``folder`` with nothing but the student.
        images: recipe -> images to use instead of its test images.

    Raises:
        ConfigError, MissingFileError, CheckpointError: no such purifier, its recipe is not known, or its files are damaged.
    """
    place = weights.locate(what)
    name = recipe_of(what, recipe)
    hint = nearest(what, weights.PURIFIERS)
    if is_run(what):
        own = load_recipe(place / RECIPE_FILE, overrides)
        return open_run(own, place, device, images and images(own))
    if not (place / CONFIG_FILE).is_file():
        raise MissingFileError(f"there is neither a run (the --output of 'purifiers train') nor a purifier at '{what}'{hint}")
    if what in weights.CLASSIFIERS:
        raise ConfigError(f"'{what}' is a classifier; expected a purifier{hint}")
    if name is None:
        raise ConfigError(f"'{what}' is a purifier without a run: name the recipe of its data set and classifier with --recipe")
    student = what if what in weights.NAMES else str(place.resolve())
    opened = load_recipe(name, [*overrides, ("weights.student", student)])
    if opened.classifier.source is None and "classifier" not in opened.weights:
        raise ConfigError(f"the classifier of the recipe '{name}' does not come with the library; give yours with --classifier")
    return open_weights(opened, load_recipe(name), folder, device, images and images(opened))


def _load_purifiers(folders: Mapping[str, Path], run: Run) -> dict[str, Purifier]:
    found = {name: folder for name, folder in folders.items() if (folder / CONFIG_FILE).is_file()}
    return {name: Purifier(load_network(folder)).placed(run.device) for name, folder in found.items()}
