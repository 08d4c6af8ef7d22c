"""A run: a recipe and the folder of everything that is made with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from purifiers import weights
from purifiers.baselines import SOAP, Adaptive, Blend, Noisy
from purifiers.classifiers.load import completed, load_classifier
from purifiers.console import Deadline, say
from purifiers.data import DATASETS, ImageSet, load_images
from purifiers.data.crops import random_crops
from purifiers.data.labels import PREDICTED
from purifiers.device import Precision, find_device, repeatable
from purifiers.errors import ConfigError, MissingFileError, nearest
from purifiers.forecast import kept
from purifiers.purifier import Purifier
from purifiers.recipes.baseline_settings import TrainedBaseline, Untrained, folder_of
from purifiers.recipes.load import NAMES, load_recipe, training_differences, variant_recipes
from purifiers.recipes.parts import folder_name
from purifiers.recipes.schema import Recipe
from purifiers.recipes.training_settings import GUIDANCE, Student
from purifiers.registry import CONFIG_FILE, build_network, describe, load_network, resolve
from purifiers.seeds import seed_for
from purifiers.shards import Shard
from purifiers.storage import load_state, locked, parse_json, write_text
from purifiers.weights import HUB

RECIPE_FILE = "recipe.yaml"
CLASSES_FILE = "classes.json"  # the names of the classes, if they have any, in the order of the labels
STATE_FILE = "state.safetensors"
SETTINGS_FILE = "baseline.json"  # in the folder of a trained baseline: its settings
CHECKPOINTS, CACHE = "checkpoints", "cache"
RUN_FILES = (
    *(CHECKPOINTS, "variants", CACHE, "figures", "config.json", "model.safetensors"),
    *("results.json", "report.md", "report.html", "card.md", "audit.json", "audit.md", "audit.html"),
    *("certificate.json", "certificate.md", CLASSES_FILE, RECIPE_FILE),
)
"""Everything that a run writes into its folder. The recipe, by which a run is known, is the last to be discarded."""
LATENT = ("latent_encoder", "latent_decoder")  # trained before the teachers, where the recipe has a group ``latent``
TEACHERS = ("teacher_nt", "teacher_at")
STUDENTS: dict[str, tuple[str, ...]] = {
    "student": ("AT", "NT"),
    "student_paper": ("AT", "NT"),
    "student_at": ("AT",),
    "student_nt": ("NT",),
    "student_other": ("AT", "NT"),
    "student_nt_other": ("NT",),
}
"""The students and their teachers. All but the first are for Table 2, with the paper's losses."""
OTHER_INPUT = ("student_other", "student_nt_other")
"""Those with the other reading of equation 5, where the recipe asks for it."""
_BEYOND = (*GUIDANCE, "trades", "label_smoothing", "weight_perturbation", "clean_share")
PAPERS_LOSSES: dict[str, Any] = dict.fromkeys(_BEYOND, 0.0)
PAPERS_LOSSES |= {"strength_low": 1.0, "strength_high": 1.0, "teachers": ("AT", "NT")}


def student_configs(recipe: Recipe, ablation: bool) -> dict[str, Student]:
    """The training of each student: the recipe's and, with ``ablation``, those for Table 2, without guidance and strengths. A
    recipe without these has no ``student_paper``: its student is that."""
    student = recipe.student
    if not ablation:
        return {"student": student}
    paper = student.model_copy(update=PAPERS_LOSSES)
    reading = "clean" if student.nt_teacher_input == "adversarial" else "adversarial"
    other = paper.model_copy(update={"nt_teacher_input": reading})
    configs = dict.fromkeys(STUDENTS, paper) | {"student": student} | dict.fromkeys(OTHER_INPUT, other)
    left_out = {*(() if recipe.both_inputs else OTHER_INPUT), *(("student_paper",) if paper == student else ())}
    return {name: config for name, config in configs.items() if name not in left_out}


@dataclass
class Run:
    """A run's folder, and everything that is trained so far."""

    recipe: Recipe
    folder: Path  # where everything is kept; ``Purifier.from_pretrained`` takes it once the student is trained
    device: torch.device
    cache: Path  # the folder of cached adversarial examples
    deadline: Deadline = field(default_factory=Deadline)
    shard: Shard = field(default_factory=Shard)  # of the attacks and measurements that are cached
    trained: Recipe | None = None  # what the weights were trained with; ``recipe`` may have other attacks or another classifier
    classifier: nn.Module = field(init=False)  # frozen, in evaluation mode; set by the first stage
    classifiers: dict[str, nn.Module] = field(default_factory=dict)  # it and its companions, by stage, if training needed them
    purifiers: dict[str, Purifier] = field(default_factory=dict)  # by stage: the teachers and ``STUDENTS``
    baselines: dict[str, Purifier] = field(default_factory=dict)  # by title; see :func:`prepare_baselines`
    variants: dict[str, Purifier] = field(default_factory=dict)  # the students of the recipe's variants, by title
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # stage -> one record for each epoch
    splits: dict[str, ImageSet] = field(default_factory=dict)  # that were read so far; use :meth:`images`

    def checkpoint(self, stage: str) -> Path:
        """The folder of a stage: its training state and, once it is finished, the trained network."""
        return self.folder / CHECKPOINTS / stage

    def variant(self, title: str) -> Path:
        """The folder of the training of one of the recipe's variants, a run of its own."""
        return self.folder / "variants" / folder_name(title)

    @property
    def precision(self) -> Precision:
        """Of training; ``auto`` is settled when a training begins, see :func:`purifiers.training.starting.settled`."""
        return "32-true" if self.recipe.precision == "auto" else self.recipe.precision

    @property
    def classifier_name(self) -> str:
        """The classifier's name in the records: its file or function, or its network."""
        config = self.recipe.classifier
        if config.source is not None:
            place = Path(config.source.removeprefix(HUB))
            return config.source if ":" in config.source and not place.is_dir() else place.stem
        width = config.network.arguments.get("width")
        name = config.network.network + str(config.network.arguments.get("depth", ""))
        return name if width is None else f"{name}-width{width}"

    def images(self, split: Literal["train", "test"]) -> ImageSet:
        """The recipe's training or test images, limited as it says, on the device; read once. Where the classifier predicts
        the labels, they are unknown until it is there."""
        if split not in self.splits:
            self.take(self._read(split), split)
        if "classifier" in vars(self):
            self.splits[split] = completed(self.splits[split], self.classifier, self.recipe.evaluation.batch_size)
        return self.splits[split]

    def drawn(self, limit: int | None) -> ImageSet:
        """A baseline's training images: ``limit`` random ones of the data set, by default those of the recipe."""
        if limit is None:
            return self.images("train")
        images = self._read("train").limited(limit, seed_for(self.recipe.seed, "baselines", "limit")).to(self.device)
        return completed(images, self.classifier, self.recipe.evaluation.batch_size)

    def _read(self, split: Literal["train", "test"]) -> ImageSet:
        config = self.recipe.data
        source = config.source()
        return kept((config.name, split, *source.items()), lambda: load_images(config.name, split, self.cache, **source))

    def take(self, images: ImageSet, split: Literal["train", "test"]) -> None:
        """Use ``images``, limited as the recipe says, as its training or test images."""
        config, seed = self.recipe.data, self.recipe.seed
        limit = config.limit if split == "train" else config.test_limit
        images = images.limited(limit, seed_for(seed, split, "limit")).to(self.device)
        if config.crops and split == "train":
            images = random_crops(images, **config.crops.model_dump(), seed=seed_for(seed, "crops"), folder=self.cache)
        self.splits[split] = images


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
    run.classifier = load_classifier(source, data, **config.options())


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


def own_classifier(title: str, purifier: Purifier) -> tuple[nn.Module, str] | None:
    """SOAP's own classifier, which was trained with its task, and a name for it; None for other purifiers."""
    network = purifier.network
    while isinstance(network, Adaptive | Blend | Noisy):
        network = network.base
    if not isinstance(network, SOAP):
        return None
    return network.classifier, f"resnet{network.classifier.config['depth']} of {title}"


@repeatable()
def prepare_baselines(run: Run, train: bool = True) -> None:
    """Build, read or train the recipe's baselines into ``run.baselines``; without ``train``, those that are not trained yet are
    left out, with those that wrap them.

    Raises:
        OutOfTime, TrainingError, CheckpointError: see :func:`purifiers.training.loop.fit`.
        ConfigError: the classifier has no such layer, or images do not suit the baseline.
    """
    network: nn.Module | None
    for title, config in run.recipe.baselines.items():
        if isinstance(config, Untrained):
            network = _untrained(run, config)
        elif not isinstance(config, TrainedBaseline):
            network = config.build(len(run.images("test").classes))
        elif train:
            data = run.drawn(config.limit)
            with locked(run.folder):
                network = resolve(config.trainer, "trainer")(run, title, config, data)
            write_text(run.checkpoint(folder_of(title)) / SETTINGS_FILE, config.model_dump_json(indent=1))
        else:
            network = _trained(run, title, config)
        if network is None:
            say(f"{title:<16} is left out: not trained as the recipe says (--baselines all trains it)")
        else:
            run.baselines[title] = Purifier(network).placed(run.device)


def _trained(run: Run, title: str, config: TrainedBaseline) -> nn.Module | None:
    """The finished network of a baseline, if it was trained with these settings; ``test_limit`` is of the evaluation."""
    folder = run.checkpoint(folder_of(title))
    if not (folder / CONFIG_FILE).is_file() or not (folder / STATE_FILE).is_file():
        return None
    network, history = load_network(folder), load_state(folder / STATE_FILE)["history"]
    try:
        settings = type(config).model_validate_json((folder / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        return None
    same = settings.model_copy(update={"test_limit": config.test_limit}) == config
    if not same or describe(network) != describe(config.build(len(run.images("test").classes))):
        return None
    run.histories[folder.name] = history
    return network


def _untrained(run: Run, config: Untrained) -> nn.Module | None:
    if config.around is None:
        return config.network.build()
    inner = run.purifiers["student"] if config.around == "student" else run.baselines.get(config.around)
    if inner is None:
        return None
    described = describe(inner.network)
    if config.network.network != "soap":
        outer = config.network.build(base=described)
        outer.get_submodule("base").load_state_dict(inner.network.state_dict())
        return outer
    if described.pop("network") != "soap":
        raise ConfigError(f"baselines: a network 'soap' goes around a trained SOAP only; '{config.around}' is not one")
    other = build_network("soap", {**described, **config.network.arguments})
    try:
        other.load_state_dict(inner.network.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"baselines: the weights of '{config.around}' do not fit these arguments: {error}") from error
    return other
