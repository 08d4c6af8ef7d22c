"""Recipes: every number of a run in one file. Read, checked, overridden and written here."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from purifiers.console import say
from purifiers.errors import ConfigError, MissingFileError, nearest
from purifiers.kinds import faults
from purifiers.recipes.audit_settings import surrogate_parts
from purifiers.recipes.schema import Recipe
from purifiers.storage import parse_yaml, yaml_text
from purifiers.weights import HUB, anywhere
from purifiers.weights import NAMES as SHIPPED

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))  # the recipes that come with the library


def load_recipe(name_or_file: str | Path, overrides: Sequence[str | tuple[str, Any]] = ()) -> Recipe:
    """Read a recipe by name or from a YAML file, with overrides such as ``student.epochs=5`` or ``("data.path", path)``.

    A ``classifier.source`` that is not the file's own comes without the file's ``classifier.mean`` and ``std``, as in
    :meth:`purifiers.recipes.schema.Classifier.behind`. For other images than the file's, the models that come with the library
    are left out of its ``companions`` and ``audit.surrogates``: they know the classes of the file's images.

    Raises:
        MissingFileError: neither a shipped recipe nor a file.
        ConfigError: the file is not YAML, or a key or value is not valid; the message names all of them. Or an override is of
            the training of a classifier that the file takes from elsewhere.
    """
    path = Path(name_or_file)
    if str(name_or_file) in NAMES:
        path = _FOLDER / f"{name_or_file}.yaml"
    elif not path.is_file():
        raise MissingFileError(f"there is no recipe '{name_or_file}'{nearest(str(name_or_file), NAMES)} (or give a YAML file)")
    content = parse_yaml(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a recipe: it should hold 'key: value' lines")
    changes = [_parse(override) if isinstance(override, str) else override for override in overrides]
    own, source = content.get("classifier"), dict(changes).get("classifier.source")
    trainable = isinstance(own, dict) and "training" in own
    if source is not None and isinstance(own, dict) and anywhere(str(source)) != anywhere(str(own.get("source"))):
        content["classifier"] = {key: value for key, value in own.items() if key not in ("mean", "std")}
    _change(content, changes)
    recipe = parse_recipe(content, where=f"{name_or_file}{' with these overrides' if changes else ''}")
    idle = next((key for key, _ in changes if key.startswith("classifier.training.")), None)
    if idle and not trainable and source is None and recipe.classifier.source is not None:
        fault = f"{idle} has no effect: the classifier is {recipe.classifier.source}, which is not trained"
        raise ConfigError(f"{fault}; leave it out, or train one with classifier.source=null and a whole classifier.training")
    return recipe


def _change(content: dict[str, Any], changes: Sequence[tuple[str, Any]]) -> None:
    """Set values by dotted key. For other images the shipped models leave companions and surrogates, unless these are set."""
    images = _images_of(content)
    for key, value in changes:
        set_value(content, key, value)
    if images is None or _images_of(content) == images:
        return
    given, gone = {key for key, _ in changes}, []
    for key, group in (("companions", content), ("audit.surrogates", content.get("audit"))):
        parent, _, name = key.rpartition(".")
        models = group.get(name) if isinstance(group, dict) else None
        if not isinstance(models, list) or not given.isdisjoint({key, parent}):
            continue
        for model in [*models]:
            source = str(model.get("source") if isinstance(model, Mapping) else model)
            if not {*surrogate_parts(source)}.isdisjoint(SHIPPED):
                models.remove(model)
                gone.append(f"{key}: {source}")
    if gone:
        say(f"left out, as the images are not those of {images}: {', '.join(gone)}")


def _images_of(content: Mapping[str, Any]) -> Any:
    data = content.get("data")
    return data.get("name") if isinstance(data, Mapping) else None


def parse_recipe(content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Check a recipe's content; raises ConfigError with all faults, and the nearest valid name of unknown keys."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n  ".join([f"{where} is not valid:", *faults(error)])) from error


def changed(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """``recipe`` with other values by dotted key, checked again, and for other images without shipped models, as in
    :func:`load_recipe`; raises as :func:`parse_recipe` does."""
    content = recipe.model_dump(mode="json")
    _change(content, [*overrides.items()])
    return parse_recipe(content, where=f"the recipe '{recipe.name}', changed")


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """The values in which two recipes differ, by dotted key; None where one has no such key."""
    first, second = (_flat(recipe.model_dump(mode="json")) for recipe in (one, other))
    return {key: (first.get(key), second.get(key)) for key in {**first, **second} if first.get(key) != second.get(key)}


NOT_TRAINING = ("evaluation", "audit", "baselines", "variants", "both_inputs", "weights", "data.test_limit")
"""Keys that change no weights of classifiers, teachers and students."""


def training_differences(there: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """:func:`differences` in what decides the weights of classifiers, teachers and students; evaluation may differ."""
    free = [*NOT_TRAINING, "name"]
    if now.data.name == "cifar10":  # the same wherever it is
        free.append("data.path")
    # Training attacks are run in the batches of the evaluation, and drawn by them.
    bound = "evaluation.batch_size" if now.training_attacks else None
    found = {key: values for key, values in differences(there, now).items() if key == bound or not key.startswith(tuple(free))}
    # A moved folder changes only the path: each stage checks its images and networks by content.
    return {key: (old, new) for key, (old, new) in found.items() if not (isinstance(new, str) and _is_gone(old))}


def _is_gone(place: Any) -> bool:
    """Whether ``place`` is an absolute path where nothing is any more."""
    path = Path(place.removeprefix(HUB) if isinstance(place, str) else "")
    return path.is_absolute() and not path.exists()


def variant_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of each of ``recipe.variants``, by title; the first one's settings are in all. Raises as :func:`changed`."""
    trained = changed(recipe, {"variants": {}, "baselines": {}, "weights": {}})
    base = next(iter(recipe.variants.values()), {})
    return {title: changed(trained, base | own) for title, own in recipe.variants.items()}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping | list):
        return {prefix.removeprefix("."): tree}
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree, start=1)
    return {name: leaf for key, value in pairs for name, leaf in _flat(value, f"{prefix}.{key}").items()}


def with_shipped_classifiers(recipe: Recipe) -> Recipe:
    """``recipe`` with shipped weights for the classifiers that it would train; raises ConfigError if not all of them ship."""
    configs = recipe.classifiers()
    sources = {stage: config.source or recipe.weights.get(stage, "") for stage, config in configs.items()}
    if missing := ", ".join(stage for stage, source in sources.items() if not source):
        raise ConfigError(f"no weights for {missing} of the recipe '{recipe.name}' come with the library: train them")
    one, *others = [config.behind(sources[stage]).model_dump(mode="json") for stage, config in configs.items()]
    return changed(recipe, {"classifier": one, "companions": others})


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML that :func:`load_recipe` reads back to an equal recipe."""
    return yaml_text(recipe.model_dump(mode="json"))


def _parse(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"an override reads key=value, for example student.epochs=5; got '{override:.80}'")
    return key.strip(), parse_yaml(text, f"the value in '{override}'")


def set_value(content: dict[str, Any], key: str, value: Any) -> None:
    """Set ``key``, with dots between the names of groups, in nested mappings."""
    if not isinstance(key, str):
        raise ConfigError(f"a setting's key is a string such as 'student.epochs'; got {key!r}")
    *parents, last = key.split(".")
    for name in parents:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise ConfigError(f"cannot set {key}: '{name}' is a value, not a group of values")
    content[last] = deepcopy(value)  # a later key may change what is in it
