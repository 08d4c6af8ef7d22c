"""The paper's training, end to end: classifiers -> NT and AT teachers -> student. Every stage resumes and is reused."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from purifiers.classifiers.load import accuracy, load_classifier, watch
from purifiers.classifiers.sources import build_classifier
from purifiers.console import Deadline, say
from purifiers.data import ImageSet
from purifiers.device import find_device
from purifiers.errors import CheckpointError, ConfigError, MissingFileError, nearest
from purifiers.purifier import Purifier
from purifiers.recipes.load import load_recipe, recipe_text, training_differences, variant_recipes
from purifiers.recipes.parts import Optimisation
from purifiers.recipes.schema import STARTS, Recipe
from purifiers.registry import CONFIG_FILE, WEIGHTS_FILE, build_network, describe, load_network, place, save_network
from purifiers.runs import MADE_BY_A_RUN, RECIPE_FILE, STUDENTS, Run, student_config
from purifiers.seeds import seed_for
from purifiers.storage import write_text
from purifiers.training.adversarial_data import Panel, attack_training_images
from purifiers.training.latent import train_latent
from purifiers.training.objectives import StageLosses, at_losses, classifier_losses, nt_losses, student_losses
from purifiers.training.stage import fit_stage, seeded
from purifiers.weights import PURIFIERS, locate

GLANCE = 1000
"""Images on which the classifier is looked at before it is defended."""


def train_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    ablation: bool = False,
    restart: bool = False,
    deadline: Deadline | None = None,
    cache: Path | None = None,
    classifiers: Mapping[str, nn.Module] = MappingProxyType({}),
) -> Run:
    """Train everything that the recipe asks for, into ``folder``; what is finished there is reused, the rest goes on.

    Args:
        recipe: the recipe.
        folder: the run's folder.
        device: see :func:`find_device`.
        ablation: also train the other students of Table 2: of one teacher, and with the other input for teacher NT.
        restart: discard everything that an earlier run left in ``folder`` first.
        deadline: stop before the epoch that would not fit, so that a long training can be cut into pieces.
        cache: folder of adversarial examples, by default one in ``folder``.
        classifiers: by stage, those that are there already, frozen, on the device: neither read nor trained.

    Raises:
        OutOfTime: the time is up and not everything is trained.
        CheckpointError: the folder holds a stage of another recipe, or a damaged one.
        ConfigError: the folder holds a network that no run made there, or what a restart would discard is asked for.
        TrainingError: a loss is not finite.
        InputError: a classifier changed while it was asked.
        DataError, MissingFileError, further ConfigErrors: see the parts.
    """
    # Whatever can be wrong with what the user gave is found before anything is written or discarded.
    run = Run(recipe, folder, find_device(device), cache or folder / "cache", deadline or Deadline())
    run.images("test")  # kept for the evaluation
    data = run.images("train")
    given = dict(classifiers)
    for name, wanted in recipe.classifiers().items():
        if wanted.source is not None and name not in given:
            given[name] = load_classifier(wanted.source, data, **wanted.options())
    begun = _begun(recipe, run.device)
    if restart:
        _discard(recipe, folder)
    else:
        _refuse_other_training(recipe, folder)
    write_text(folder / RECIPE_FILE, recipe_text(recipe))
    for name in recipe.classifiers():
        run.classifiers[name] = given[name] if name in given else _train_classifier(run, name, data)
    run.classifier = run.classifiers["classifier"]
    unchanged = watch({f"the {name.replace('_', ' ')}": one for name, one in run.classifiers.items()})
    _look_at(run, data)

    panel = Panel(list(run.classifiers.values()), recipe.precision)
    clean = data.images
    pairs = torch.cat([clean, attack_training_images(run, panel, data)], dim=1)
    guided = at_losses(recipe.teacher_at, panel)
    nt = _train_purifier(run, "teacher_nt", recipe.teacher_nt, clean, data.labels, nt_losses)
    first = begun.get("teacher_at")
    if recipe.latent is not None:
        first = train_latent(run, panel, pairs, data.labels, _made_from(run, pairs))
    at = _train_purifier(run, "teacher_at", recipe.teacher_at, pairs, data.labels, guided, panel.classifiers, first)
    teachers = {"AT": at, "NT": nt}
    # An untrained residual network says what it is given, and need not be asked.
    asked = teachers if recipe.teacher_nt.epochs else {"AT": at, "NT": nn.Identity()}
    for name, chosen in STUDENTS.items():
        if name == "student" or ablation:
            config = student_config(recipe.student, name)
            distilled = student_losses(config, {teacher: asked[teacher] for teacher in chosen}, panel)
            first = at if config.start == "teacher_at" else begun.get("student")
            parents = [*panel.classifiers, *(teachers[teacher] for teacher in chosen)]
            _train_purifier(run, name, config, pairs, data.labels, distilled, parents, first)
    unchanged()
    save_network(folder, run.purifiers["student"].network)  # its card comes when it is measured
    return run


def _begun(recipe: Recipe, device: torch.device) -> dict[str, nn.Module]:
    """The purifiers that the recipe names as a stage's start, by stage, frozen, on ``device``."""
    built = describe(build_network(recipe.purifier.network, recipe.purifier.arguments))
    found = {}
    for stage, start in _starts(recipe).items():
        if not (locate(start) / CONFIG_FILE).is_file():
            valid = [*PURIFIERS, *(STARTS if stage == "student" else ())]
            trained = "(or the --output of 'purifiers train')"
            raise MissingFileError(f"{stage}.start: there is no purifier at '{start}'{nearest(start, valid)} {trained}")
        network = load_network(locate(start))
        if describe(network) != built:
            other = describe(network)
            raise ConfigError(f"{stage}.start: '{start}' has not the structure of the recipe's purifier: {other}, not {built}")
        found[stage] = place(network, device).requires_grad_(False)
    return found


def _starts(recipe: Recipe) -> dict[str, str]:
    """The purifiers that stages go on from, by stage."""
    found = {"teacher_at": recipe.teacher_at.start, "student": recipe.student.start}
    words = {("student", word) for word in STARTS}
    return {stage: start for stage, start in found.items() if start is not None and (stage, start) not in words}


def _discard(recipe: Recipe, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / RECIPE_FILE).is_file():
        raise ConfigError(f"{folder} was not made by a run (it has no {RECIPE_FILE}); --restart discards nothing there")
    made = [folder / name for name in MADE_BY_A_RUN]
    needed = [("classifier", config.source) for config in recipe.classifiers().values() if config.source is not None]
    needed += [("purifier", start) for start in _starts(recipe).values()]
    for kind, source in needed:
        given = locate(source).resolve()
        if given == folder.resolve() or any(given.is_relative_to(path.resolve()) for path in made):
            raise ConfigError(f"--restart would discard the {kind} {source}: copy it out of {folder} first")
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _look_at(run: Run, data: ImageSet) -> None:
    """Say how good the classifier is: one that guesses is a mistake in the order of classes, or in normalisation."""
    sample = data.limited(GLANCE, seed_for(run.recipe.seed, "glance"))
    right = accuracy(run.classifier, sample, run.recipe.evaluation.batch_size)
    say(f"{'classifier':<16} {right:.1%} right on {len(sample):,} training images")
    if right < 2 / len(data.classes) and right < 0.5:
        say(f"warning: the classifier is hardly better than guessing; {_advice(run)}")


def _advice(run: Run) -> str:
    if run.recipe.classifier.source is None:
        return "train it on more images or for longer (classifier.training.epochs)"
    return (
        "classes are numbered in the alphabetical order of their folders, and images are in [0,1]: "
        "is that what it was trained with?"
    )


def _refuse_other_training(recipe: Recipe, folder: Path) -> None:
    """Before anything is overwritten."""
    if not (folder / RECIPE_FILE).is_file():
        if there := next((name for name in (CONFIG_FILE, WEIGHTS_FILE) if (folder / name).exists()), None):
            raise ConfigError(f"{folder} holds a network that was not trained there ({there}): give another --output")
        return
    if differing := training_differences(load_recipe(folder / RECIPE_FILE), recipe):
        listed = ", ".join(f"{key} is {there} there, {now} now" for key, (there, now) in list(differing.items())[:5])
        listed += f", and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise CheckpointError(
            f"{folder} was made with another recipe: {listed}; give another --output, or --restart to discard what is there"
        )


def _train_classifier(run: Run, name: str, data: ImageSet) -> nn.Module:
    config = run.recipe.classifiers()[name]
    assert config.training is not None  # the schema asks for a source or a training
    network = seeded(run, name, lambda: build_classifier(config.network.model_dump(), len(data.classes)))
    fit_stage(run, name, name, network, data.images, data.labels, classifier_losses, config.training, captured=True)
    return network.requires_grad_(False)


def _train_purifier(
    run: Run,
    name: str,
    optimisation: Optimisation,
    images: Tensor,
    labels: Tensor,
    losses: StageLosses,
    parents: Sequence[nn.Module] = (),
    first: nn.Module | None = None,
) -> nn.Module:
    # All students start from the same weights and see the same batches, so that they differ in their teachers alone.
    stream = "student" if name in STUDENTS else name
    config = run.recipe.purifier
    network = seeded(run, stream, lambda: build_network(config.network, config.arguments))
    if first is not None:
        network.load_state_dict(first.state_dict())
        parents = [*parents, first]
    # An attack in every step checks what it made, and waits for that.
    captured = getattr(optimisation, "attack", None) is None
    made_from = _made_from(run, images)
    fit_stage(run, name, stream, network, images, labels, losses, optimisation, parents, made_from, captured=captured)
    run.purifiers[name] = Purifier(network.requires_grad_(False))
    return network


def _made_from(run: Run, images: Tensor) -> list[object]:
    """Of what the adversarial examples in ``images``, stacked along the channels, are made; nothing where there are none."""
    attacks = {name: attack.model_dump() for name, attack in run.recipe.training_attacks.items()}
    return [attacks, run.recipe.attack_rounds] if images.shape[1] > 3 else []


def train_variants(run: Run, device: str = "auto") -> None:
    """Train the variants of ``run``'s recipe below its folder, each resumable like any run, into ``run.variants``.

    Args:
        run: as :func:`purifiers.training.pipeline.train_recipe` gives it: its classifiers are those of every variant that does not
            ask for others.
        device: see :func:`purifiers.device.find_device`.

    Raises:
        See :func:`purifiers.training.pipeline.train_recipe`.
    """
    known = run.recipe.classifiers()
    for title, recipe in variant_recipes(run.recipe).items():
        say(f"\nvariant: {title}")
        given = {
            name: run.classifiers[twin]
            for name, config in recipe.classifiers().items()
            for twin in (*known, name)  # of several alike the one of this place, which stands last
            if known.get(twin) == config
        }
        folder = run.variant(title)
        trained = train_recipe(recipe, folder, device=device, cache=run.cache, deadline=run.deadline, classifiers=given)
        run.variants[title] = trained.purifiers["student"]
