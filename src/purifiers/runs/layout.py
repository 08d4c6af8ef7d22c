"""A run: a recipe and the folder of everything that is made with it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from purifiers.classifiers.load import completed
from purifiers.console import Deadline
from purifiers.data import ImageSet, load_images
from purifiers.data.crops import random_crops
from purifiers.device import Precision
from purifiers.forecast import kept
from purifiers.purifier import Purifier
from purifiers.recipes.parts import folder_name
from purifiers.recipes.schema import Recipe
from purifiers.recipes.training_settings import GUIDANCE, Student
from purifiers.seeds import seed_for
from purifiers.shards import Shard
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
"""Everything that a run writes into its folder. The recipe comes last: it marks the folder as a run."""
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
_BEYOND = (*GUIDANCE, "trades", "label_smoothing", "weight_perturbation", "clean_share", "guide_blur")
PAPERS_LOSSES: dict[str, Any] = dict.fromkeys(_BEYOND, 0.0)
PAPERS_LOSSES["guide_shift"] = 0
PAPERS_LOSSES |= {"strength_low": 1.0, "strength_high": 1.0, "teachers": ("AT", "NT"), "beta": 0.5, "gamma": 0.5}


def student_configs(recipe: Recipe, ablation: bool) -> dict[str, Student]:
    """The training of each student: the recipe's and, with ``ablation``, those for Table 2, without guidance and strengths. A
    recipe without these has no ``student_paper``: its student is that. Where the student or teacher NT is not trained, there is
    no ablation."""
    student = recipe.student
    taught = recipe.teacher_nt.epochs or recipe.purifier.arguments.get("residual")
    if not (ablation and student.epochs and taught):
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
    classifiers: dict[str, nn.Module] = field(default_factory=dict)  # by stage, frozen: the one to protect, and companions
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
    def classifier(self) -> nn.Module:
        """The one to protect."""
        return self.classifiers["classifier"]

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
            self.take(self._read(split, *self._limit(split)), split)
        if "classifier" in self.classifiers:
            self.splits[split] = completed(self.splits[split], self.classifier, self.recipe.evaluation.batch_size)
        return self.splits[split]

    def drawn(self, limit: int | None) -> ImageSet:
        """A baseline's training images: ``limit`` random ones of the data set, by default those of the recipe."""
        if limit is None:
            return self.images("train")
        images = self._read("train", limit, seed_for(self.recipe.seed, "baselines", "limit")).to(self.device)
        return completed(images, self.classifier, self.recipe.evaluation.batch_size)

    def _limit(self, split: Literal["train", "test"]) -> tuple[int | None, int]:
        """How many images of a split the recipe takes, None for all, and the seed that draws them."""
        config = self.recipe.data
        return config.limit if split == "train" else config.test_limit, seed_for(self.recipe.seed, split, "limit")

    def _read(self, split: Literal["train", "test"], limit: int | None, seed: int) -> ImageSet:
        config = self.recipe.data
        options = {"limit": limit, "seed": seed, **config.source()}
        return kept(
            (config.name, split, *options.items()), lambda: load_images(config.name, split, cache=self.cache, **options)
        )

    def take(self, images: ImageSet, split: Literal["train", "test"]) -> None:
        """Use ``images``, limited as the recipe says, as its training or test images."""
        images, crops = images.limited(*self._limit(split)).to(self.device), self.recipe.data.crops
        if crops and split == "train":
            seed = seed_for(self.recipe.seed, "crops")
            images = random_crops(images, **crops.model_dump(), seed=seed, folder=self.cache)
        self.splits[split] = images
