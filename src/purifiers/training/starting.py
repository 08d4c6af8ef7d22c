"""Before training starts: the purifiers that stages start from, the folder, and a look at the classifier."""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from purifiers.attacks.views import Features
from purifiers.console import say
from purifiers.data import ImageSet, to_float
from purifiers.data.large import IMAGES
from purifiers.device import fastest_precision
from purifiers.errors import CheckpointError, ConfigError, InputError, MissingFileError, nearest
from purifiers.evaluation import metrics
from purifiers.forecast import current
from purifiers.recipes.audit_settings import surrogate_parts
from purifiers.recipes.baseline_settings import Pretrained
from purifiers.recipes.load import load_recipe, recipe_text, training_differences, variant_recipes
from purifiers.recipes.schema import Recipe
from purifiers.recipes.training_settings import STARTS, OnAttacked, Supervised
from purifiers.registry import CONFIG_FILE, describe, load_network, place
from purifiers.runs import CACHE, CHECKPOINTS, RECIPE_FILE, RUN_FILES, Run
from purifiers.seeds import seed_for
from purifiers.storage import LOCK_FILE
from purifiers.training.distributed import world_size
from purifiers.training.stages import held_out_count
from purifiers.weights import HUB, PURIFIERS, locate

CACHED = re.compile(r"-[0-9a-f]{16,32}(\.\w+)*$")
"""Ends the names of what a cache holds; other files there are somebody else's."""
SAMPLE = 1000  # images on which the classifier's accuracy is measured before it is defended


def load_starts(recipe: Recipe, device: torch.device) -> dict[str, nn.Module]:
    """The purifiers that the recipe names as a stage's start, by stage, frozen, on ``device``."""
    networks = {}
    for stage, start in _starts(recipe).items():
        if not (locate(start) / CONFIG_FILE).is_file():
            hint = nearest(start, [*PURIFIERS, *(STARTS if stage == "student" else ())])
            advice = "or the output folder of a training"
            raise MissingFileError(f"{stage}.start: there is no purifier at '{start}'{hint} ({advice})")
        network = load_network(locate(start))
        built = recipe.student.network if stage == "student" else None
        expected = describe((built or recipe.purifier).build())
        if (found := describe(network)) != expected:
            raise ConfigError(f"{stage}.start: '{start}' does not have the structure of the purifier: {found}, not {expected}")
        networks[stage] = place(network, device).requires_grad_(False)
    return networks


def settled(run: Run, restart: bool) -> Recipe:
    """``run``'s recipe with a precision in place of ``auto``: when resuming that of the run in its folder, otherwise the faster
    one here."""
    if run.recipe.precision != "auto":
        return run.recipe
    resumed = begun(run.folder) and not restart
    precision = load_recipe(run.folder / RECIPE_FILE).precision if resumed else fastest_precision(run.device)
    return run.recipe.model_copy(update={"precision": precision})


def begun(folder: Path) -> bool:
    """Whether a run was begun in ``folder``: its recipe is there, with something trained or as a run writes it."""
    file = folder / RECIPE_FILE
    return file.is_file() and ((folder / CHECKPOINTS).is_dir() or file.read_bytes() == recipe_text(load_recipe(file)).encode())


def prepare_folder(recipe: Recipe, folder: Path, restart: bool) -> None:
    """Refuse a folder that holds anything but this training or nothing; or discard an earlier run there."""
    if (folder / RECIPE_FILE).is_file() and not begun(folder):
        raise ConfigError(f"{folder} has a {RECIPE_FILE} that no run wrote, and nothing trained: choose another output folder")
    if restart:
        _discard(recipe, folder)
    elif begun(folder):
        if differing := training_differences(load_recipe(folder / RECIPE_FILE), recipe):
            listed = ", ".join(f"{key} is {there} there, {now} now" for key, (there, now) in list(differing.items())[:5])
            listed += f", and {len(differing) - 5} more" if len(differing) > 5 else ""
            hint = "choose another output folder, or restart to discard what is there"
            raise CheckpointError(f"{folder} was made with another recipe: {listed}; {hint}")
    elif found := next((name for name in RUN_FILES if name != CACHE and (folder / name).exists()), None):
        raise ConfigError(f"{folder} has a {found} that no run made, and a run would replace: choose another output folder")


def check_trainings(run: Run) -> None:
    """Refuse, before anything is trained, settings of trainings that would fail later."""
    for name, training in _supervised(run.recipe).items():
        if training.weight_perturbation and world_size() > 1:  # it needs the gradient of the whole batch
            raise ConfigError(f"{name}.weight_perturbation trains in one process: start one, or set it to 0")
        if training.held_out is not None:
            held_out_count(run, name, training.held_out, len(run.images("train")))
    expected, classes = run.recipe.purifier.arguments.get("classes"), len(run.images("train").classes)
    if run.recipe.latent is not None and expected and expected != classes:
        fault = f"purifier.classes is {expected}, but the images have {classes} classes"
        raise ConfigError(f"{fault}: set it to {classes}, or to 0")


def check_features(run: Run) -> None:
    """Refuse, before anything is trained on the classifiers, a ``feature_layer`` that one of them does not have."""
    for name, training in _supervised(run.recipe).items():
        if isinstance(training, OnAttacked) and training.features_weight:
            _check_features(run, f"{name}.feature_layer", training.feature_layer)


def _supervised(recipe: Recipe) -> dict[str, Supervised]:
    """The trainings with labels, by their keys."""
    named: dict[str, Supervised] = {
        f"{stage}.training": one.training
        for stage, one in recipe.classifiers().items()
        if one.source is None and one.training is not None
    }
    if recipe.latent is not None:
        named |= {"latent.encoder": recipe.latent.encoder, "latent.decoder": recipe.latent.decoder}
    return named | {"teacher_at": recipe.teacher_at, "student": recipe.student}


def _check_features(run: Run, key: str, layer: str | None) -> None:
    sample = to_float(run.images("train").images[:1])
    try:
        with torch.no_grad():
            shapes = {name: Features(one, layer)(sample).shape for name, one in run.classifiers.items()}
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape[1]}" for name, shape in shapes.items())
        raise ConfigError(f"{key}: the classifiers' features have different sizes ({found}); name a layer in which they agree")


def report_accuracy(run: Run, data: ImageSet) -> None:
    """Print the classifier's accuracy; one that guesses hints at another order of classes, or at normalisation."""
    if current():
        return
    sample = data.limited(SAMPLE, seed_for(run.recipe.seed, "glance"))
    predicted = metrics.predict(run.classifier, sample.images, run.recipe.evaluation.batch_size)
    if odd := int((predicted < 0).sum()):
        raise InputError(f"the classifier returns NaN or infinite logits for {odd} of {len(sample)} training images")
    if data.labels_predicted:
        return
    share = metrics.matches(predicted, sample.labels) / len(sample)
    say(f"{'classifier':<16} {share:.1%} right on {len(sample):,} training images")
    if share < 2 / len(data.classes) and share < 0.5:
        advice = "train it on more images or for longer (classifier.training.epochs)"
        if run.recipe.classifier.source is not None:
            advice = "was it trained with the classes in this order (folders: alphabetical) and with images in [0,1]?"
        say(f"warning: the classifier is hardly better than guessing; {advice}")


def _starts(recipe: Recipe) -> dict[str, str]:
    """Names or folders of the purifiers that stages start from, by stage."""
    starts = {} if recipe.teacher_at.start is None else {"teacher_at": recipe.teacher_at.start}
    return starts if recipe.student.start in STARTS else starts | {"student": recipe.student.start}


def _places(recipe: Recipe) -> Iterator[str]:
    """All weights that a run of ``recipe`` reads, those of its variants and surrogates too."""
    for one in (recipe, *variant_recipes(recipe).values()):
        yield from (config.source for config in one.classifiers().values() if config.source is not None)
        yield from _starts(one).values()
    for surrogate in recipe.audit.surrogates:
        yield from surrogate_parts(surrogate)
    yield from (baseline.source for baseline in recipe.baselines.values() if isinstance(baseline, Pretrained))


def _discard(recipe: Recipe, folder: Path) -> None:
    decoded = [folder / CACHE, *folder.glob(f"{CACHE}/{IMAGES}*")]  # maybe for this very run, before this
    others = {path for path in (*folder.iterdir(), *folder.glob(f"{CACHE}/*")) if path.name != LOCK_FILE} - {*decoded}
    if others and not (folder / RECIPE_FILE).is_file():
        raise ConfigError(f"{folder} was not made by a run (it has no {RECIPE_FILE}): a restart discards nothing there")
    paths = [folder / name for name in RUN_FILES]
    for name in _places(recipe):
        needed = locate(name.removeprefix(HUB)).resolve()
        if needed == folder.resolve() or any(needed.is_relative_to(path.resolve()) for path in paths):
            raise ConfigError(f"a restart would discard {name}, which the recipe needs: copy it out of {folder} first")
    cached = [path for path in folder.glob(f"{CACHE}/*") if CACHED.search(path.name) and path not in decoded]
    for path in [*cached, *(path for path in paths if path.name != CACHE)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or it has files of somebody else
        (folder / CACHE).rmdir()
