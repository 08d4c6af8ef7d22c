"""The paper's training, end to end: classifiers -> NT and AT teachers -> student. Every stage resumes and is reused."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks.base import frozen
from purifiers.classifiers.load import adapt_classifier, build_classifier, check_form, completed, load_classifier, watch
from purifiers.console import Deadline, say
from purifiers.data import ImageSet, as_image_set
from purifiers.device import find_device, repeatable
from purifiers.errors import ConfigError, InputError
from purifiers.forecast import current, limited_by
from purifiers.purifier import Purifier
from purifiers.recipes.load import changed, load_recipe, recipe_text, variant_recipes
from purifiers.recipes.parts import Optimisation
from purifiers.recipes.schema import Recipe
from purifiers.registry import save_network
from purifiers.runs import CACHE, CLASSES_FILE, RECIPE_FILE, STUDENTS, Run, student_configs
from purifiers.seeds import seed_for
from purifiers.shards import Shard
from purifiers.storage import locked, write_text
from purifiers.training.adversarial_data import Panel, attack_training_images, with_outputs
from purifiers.training.distributed import first_only, together
from purifiers.training.latent import train_latent
from purifiers.training.loop import Stage
from purifiers.training.objectives import StageLosses, at_losses, classifier_losses, nt_losses, student_losses
from purifiers.training.stages import fit_stage, seeded
from purifiers.training.starting import check_features, check_trainings, load_starts, prepare_folder, report_accuracy, settled
from purifiers.weights import MEMORY

NOTHING: Mapping[str, Any] = MappingProxyType({})


def train(
    classifier: nn.Module,
    images: ImageSet | Tensor | Iterable[Any],
    labels: Tensor | None = None,
    *,
    output: str | Path,
    recipe: str | Path | Recipe = "folder",
    settings: Mapping[str, Any] = NOTHING,
    device: torch.device | str | None = None,
    seed: int | None = None,
    restart: bool = False,
) -> Purifier:
    """Train a purifier for a classifier and images in memory; the same call resumes what was stopped. The purifier comes back
    on the classifier's device.

    Args:
        classifier: images (N, 3, H, W), float32, in [0,1] -> logits (N, classes), with its normalisation inside; one of grey
            images gets the luma. It is only read: weights, modes, gradients and device stay as they are.
        images: the training images: (N, 3, H, W), uint8 or float32 in [0,1]; batches of ``(images, labels)``, as of a
            DataLoader, which are all read into memory; or an ImageSet. Keep others to evaluate on.
        labels: int64 (N,), the true classes, beside a tensor of images.
        output: the folder for everything that is made; ``Purifier.from_pretrained(output)`` loads the purifier again.
        recipe: the name of one that ships, a YAML file or a Recipe; its data set and classifier are replaced by yours, while
            its companions are trained on your images.
        settings: changes of the recipe by dotted key, such as ``{"student.epochs": 5}``; a mapping replaces a whole group. Of
            the groups ``classifier`` and ``data`` only ``data.limit`` and ``data.crops``.
        device: where to train; by default where the classifier is.
        seed: of all randomness; by default the recipe's.
        restart: discard what an earlier run left in ``output`` first.

    Raises:
        InputError: images or labels are not as above.
        ConfigError: the recipe, a setting or the classifier cannot be used.
        CheckpointError, TrainingError: see :func:`train_recipe`.
    """
    if not isinstance(settings, Mapping):
        raise InputError(f"settings is a mapping such as {{'student.epochs': 5}}; got a {type(settings).__name__}")
    if not (isinstance(output, str | Path) and isinstance(recipe, str | Path | Recipe)):
        raise InputError(f"output is a folder, recipe a name, file or Recipe; got {output!r} and {recipe!r:.80}")
    of_images = [key for key in settings if str(key).split(".")[0] in ("classifier", "data")]
    if taken := [key for key in of_images if str(key).split(".")[1:2] not in (["limit"], ["crops"])]:
        raise ConfigError(f"settings: {taken[0]} has no effect: the classifier and the images are those that were passed")
    name = f"{MEMORY}:{type(classifier).__name__}"
    check_form(classifier, name)
    tensor = next(chain(classifier.parameters(), classifier.buffers()), torch.empty(0))
    home, chosen = tensor.device, find_device(str(device or tensor.device))
    data = as_image_set(images, labels).to(chosen)
    height, width = data.images.shape[2:]
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    crops = recipe.data.crops and recipe.data.crops.model_dump()
    own = {
        "classifier": {"source": name},
        "data": {"name": MEMORY, "size": height if height == width else None, "crops": crops},
        **{group: {} for group in ("baselines", "variants", "weights")},  # of the recipe's own data set
        **settings,
        **({} if seed is None else {"seed": seed}),
    }
    recipe = changed(recipe, own)
    run = Run(recipe, Path(output), chosen, Path(output) / CACHE)
    model = classifier if chosen == home else deepcopy(classifier).to(chosen)
    with together(), frozen(model):
        adapted = adapt_classifier(model, name, data)
        run.take(completed(data, adapted), "train")
        if recipe.data.crops is not None:
            adapt_classifier(model, name, run.splits["train"])
        _train_stages(run, {"classifier": adapted}, ablation=False, restart=restart)
        # What was saved, as everybody will load it; a forecast saves nothing.
        return (run.purifiers["student"] if current() else first_only(lambda: Purifier.from_pretrained(run.folder))).to(home)


def train_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    ablation: bool = False,
    restart: bool = False,
    deadline: Deadline | None = None,
    cache: Path | None = None,
    classifiers: Mapping[str, nn.Module] = NOTHING,
    shard: Shard | None = None,
) -> Run:
    """Train everything that the recipe asks for, into ``folder``; what is finished there is reused, the rest is resumed.

    Args:
        ablation: also train the other students of Table 2.
        restart: discard everything that an earlier run left in ``folder`` first.
        deadline: stop before the epoch that would not fit.
        cache: folder of adversarial examples, by default one in ``folder``.
        classifiers: by stage, frozen, on the device: used instead of being read or trained.
        shard: the share of the adversarial examples to make here; whoever finds those of the others trains everything.

    Raises:
        OutOfTime: the time is up and not everything is trained.
        Unfinished: this shard's adversarial examples are there, and those of others are not.
        CheckpointError: the folder holds a stage of another recipe, or a damaged one.
        ConfigError: the folder holds a network that no run made there, or a restart would discard what the recipe needs.
        TrainingError: a loss is not finite, or another process trains in ``folder``.
        InputError: a classifier changed while it was used.
        DataError, MissingFileError, further ConfigErrors: see the parts.
    """
    run = Run(recipe, folder, find_device(device), cache or folder / CACHE, deadline or Deadline(), shard or Shard())
    names = run.images("test").classes  # whatever is wrong with them is found before the training, not after it
    _train_stages(run, classifiers, ablation=ablation, restart=restart)
    first_only(lambda: write_text(folder / CLASSES_FILE, json.dumps(names)))
    return run


def train_variants(run: Run, device: str = "auto") -> None:
    """Train the variants of ``run``'s recipe below its folder into ``run.variants``; equal classifiers are shared."""
    own = run.recipe.classifiers()
    for title, recipe in variant_recipes(run.recipe).items():
        say(f"\nvariant: {title}")
        shared = {name: run.classifiers[name] for name, config in recipe.classifiers().items() if own.get(name) == config}
        folder = run.variant(title)
        trained = train_recipe(recipe, folder, device=device, cache=run.cache, deadline=run.deadline, classifiers=shared)
        run.variants[title] = trained.purifiers["student"]


@repeatable()
def _train_stages(run: Run, classifiers: Mapping[str, nn.Module], *, ablation: bool, restart: bool) -> None:
    """All stages of ``run``'s recipe, in order, into ``run``; see :func:`train_recipe`."""
    recipe, data = run.recipe, run.images("train")
    if restart and current():  # nothing is discarded for a forecast
        inside = run.cache == run.folder / CACHE
        run.folder, restart = run.folder / "empty", False
        run.cache = run.folder / CACHE if inside else run.cache
    folder = run.folder
    # Everything that the user names is opened before anything is written or discarded, and variants, trained last, are read.
    variant_recipes(recipe)
    opened = dict(classifiers)
    for name, wanted in recipe.classifiers().items():
        if wanted.source is not None and name not in opened:
            opened[name] = load_classifier(wanted.source, data, **wanted.options())
        if name == "classifier" and name in opened:  # its predictions may be the labels, and the companions have to know these
            run.classifiers[name] = opened[name]
            data = run.images("train")
    if "classifier" not in opened and (data.unlabelled or not data.classes):
        lacking = "labels: give them with --labels FILE or sort the images into class folders"
        lacking = lacking if data.unlabelled else "the names of their classes: give these with --classes FILE"
        raise ConfigError(f"a classifier is to be trained, and these images come without {lacking}; or give your --classifier")
    starts = load_starts(recipe, run.device)
    check_trainings(run)
    shared = run.shard.count > 1
    begun = (folder / RECIPE_FILE).is_file()  # then no other limit is accepted
    with limited_by(None if begun else "--set data.limit={}"), ExitStack() as held:

        def prepare() -> Recipe:
            held.enter_context(locked(folder, wait=shared))  # one shard trains the classifiers for all
            chosen = settled(run, restart)  # a shard that waited takes what the first one chose
            prepare_folder(chosen, folder, restart)
            if not (folder / RECIPE_FILE).is_file():
                write_text(folder / RECIPE_FILE, recipe_text(chosen))
            return chosen

        run.recipe = recipe = first_only(prepare)
        for name in recipe.classifiers():
            run.classifiers[name] = opened[name] if name in opened else train_classifier(run, name)
        unchanged = watch({f"the {name.replace('_', ' ')}": one for name, one in run.classifiers.items()})
        data = run.images("train")  # now labelled, if the classifier does that
        report_accuracy(run, data)
        check_features(run)
        panel = Panel(run.classifiers.values(), run.precision)
        if shared:  # all attack at once
            held.close()
        with panel.watched():
            pairs = run.shard.finish(lambda: attack_training_images(run, panel, data))
            if shared:
                held.enter_context(locked(folder, wait=True))
            _train_purifiers(run, panel, pairs, starts, ablation)
        unchanged()
        # Of a resumed run the evaluation may differ; the purifier's card comes when it is measured.
        first_only(lambda: write_text(folder / RECIPE_FILE, recipe_text(recipe)))
        first_only(lambda: save_network(folder, run.purifiers["student"].network))


def _train_purifiers(run: Run, panel: Panel, pairs: Tensor, starts: Mapping[str, nn.Module], ablation: bool) -> None:
    """The teachers, from ``starts`` if they name one, and the students, on training images with adversarial ones: ``pairs``."""
    recipe, data = run.recipe, run.images("train")
    nt = train_purifier(run, "teacher_nt", recipe.teacher_nt, data.images, nt_losses)
    start = starts.get("teacher_at")
    if recipe.latent is not None:
        start = train_latent(run, panel, pairs)
    guided = at_losses(recipe.teacher_at, panel)
    at = train_purifier(run, "teacher_at", recipe.teacher_at, pairs, guided, list(panel.classifiers), start)
    teachers = {"AT": at, "NT": nt}
    # An untrained residual network is the identity, and slower.
    outputs = teachers if recipe.teacher_nt.epochs else {"AT": at, "NT": nn.Identity()}
    shown = with_outputs(run, at, pairs) if recipe.student.teacher_once else pairs
    for name, student in student_configs(recipe, ablation).items():
        own = [teacher for teacher in STUDENTS[name] if teacher in student.teachers]
        distilled = student_losses(student, {teacher: outputs[teacher] for teacher in own}, panel)
        start = at if student.start == "teacher_at" else starts.get("student")
        parents = [*panel.classifiers, *(teachers[teacher] for teacher in own)]
        train_purifier(run, name, student, shown, distilled, parents, start)


def train_classifier(run: Run, name: str) -> nn.Module:
    """Train the classifier ``name`` of ``run``'s recipe, or read it where it is trained already; it comes back frozen."""
    config, data = run.recipe.classifiers()[name], run.images("train")
    assert config.training is not None  # the schema asks for a source or a training
    network = seeded(run, name, lambda: build_classifier(config.network.model_dump(), len(data.classes)))
    losses, captured = classifier_losses(config.training, run.precision), config.training.attack is None
    fit_stage(run, Stage(name, network, data.images, data.labels, losses, config.training, captured=captured))
    return network.requires_grad_(False)


def train_purifier(
    run: Run,
    name: str,
    optimisation: Optimisation,
    images: Tensor,
    losses: StageLosses,
    parents: Sequence[nn.Module] = (),
    start: nn.Module | None = None,
) -> nn.Module:
    """Train the stage ``name`` of ``run``, a purifier, from the weights of ``start`` if there is one, into ``run.purifiers``.

    ``images`` may have adversarial examples stacked along the channels; ``parents`` are networks that decide the result.
    """
    # All students start from the same weights and see the same batches, so that they differ in their teachers alone.
    stream = "student" if name in STUDENTS else name
    network = seeded(run, stream, (getattr(optimisation, "network", None) or run.recipe.purifier).build)
    if start is not None:
        network.load_state_dict(start.state_dict())
        parents = [*parents, start]
    # An attack in every step checks its result, and waits for that.
    captured = getattr(optimisation, "attack", None) is None
    seed, labels = seed_for(run.recipe.seed, stream), run.images("train").labels
    fit_stage(run, Stage(name, network, images, labels, losses, optimisation, run.classifier, captured, seed=seed), parents)
    run.purifiers[name] = Purifier(network.requires_grad_(False))
    return network
