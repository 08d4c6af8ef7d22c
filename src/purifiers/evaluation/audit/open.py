"""What the command line audits: runs, and purifiers by name or folder, with the recipe's baselines and companions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from purifiers import weights
from purifiers.classifiers.load import load_classifier, watch
from purifiers.console import say
from purifiers.errors import ConfigError
from purifiers.evaluation.audit.attack import Subject
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.audit.run import audit_all
from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.recipes.schema import Recipe
from purifiers.registry import CONFIG_FILE
from purifiers.run_baselines import prepare_baselines
from purifiers.runs import Run, is_run, open_defended, own_classifier
from purifiers.seeds import seed_for


@dataclass
class Opened:
    """What is to be audited together.

    Attributes:
        run: the first; it gives the images, the settings, the baselines and the companions.
        subjects: the defended models.
        surrogates: what is attacked in their place under ``transfer``.
    """

    run: Run
    subjects: list[Subject] = field(default_factory=list)
    surrogates: dict[str, nn.Module] = field(default_factory=dict)

    def audit(self, cache: Path) -> Audit:
        """Audit them, keeping what is finished in ``cache``; raises as :func:`purifiers.evaluation.audit.run.audit` does."""
        recipe = self.run.recipe
        unchanged = watch({f"the classifier behind {one.name}": one.defended.classifier for one in self.subjects})
        found = audit_all(
            self.subjects,
            self.run.images("test"),
            recipe.audit,
            self.surrogates,
            seed=seed_for(recipe.seed, "evaluation"),
            batch_size=recipe.evaluation.batch_size,
            cache=cache,
        )
        unchanged()
        return found


def open_audited(
    whats: Sequence[str],
    load: Callable[[str | Path, Sequence[tuple[str, Any]]], Recipe],
    folder: Path,
    *,
    recipe: str | None = None,
    baselines: Literal["all", "ready", "none"] = "none",
    device: str = "auto",
) -> Opened:
    """Open everything that is to be audited.

    Args:
        whats: folders of runs, names of shipped purifiers or folders of saved ones.
        load, recipe: see :func:`purifiers.runs.open_defended`; ``recipe`` is for those that are no runs.
        folder: where baselines of a purifier that is no run are trained.
        baselines: the first recipe's other purifiers: all, trained where they are not yet; those that are ready; or none.
        device: see :func:`purifiers.device.find_device`.

    Raises:
        ConfigError: other images than the first's, the same purifier or title of a surrogate twice, or see the parts.
        MissingFileError, CheckpointError: see :func:`purifiers.runs.open_defended`.
    """
    runs = {what: open_defended(what, load, folder, None if is_run(what) else recipe, device) for what in whats}
    if len(runs) < len(whats):
        raise ConfigError(f"each purifier once, please; got {', '.join(whats)}")
    run = next(iter(runs.values()))
    opened = Opened(run)
    names = _names(list(runs))
    for what, one in runs.items():
        if _images_of(one) != _images_of(run):
            raise ConfigError(
                f"{what} is of other images ({one.recipe.data.name}) than {whats[0]} ({run.recipe.data.name}): audit them apart"
            )
        purifier = one.purifiers["student"]
        # SOAP that was saved comes with the classifier that it needs.
        classifier, name = own_classifier(names[what], purifier) or (one.classifier, one.classifier_name)
        opened.subjects.append(Subject(names[what], PurifiedClassifier(purifier, classifier), name))
    if baselines != "none":
        prepare_baselines(run, train=baselines == "all")
        for title, purifier in run.baselines.items():
            classifier, name = own_classifier(title, purifier) or (run.classifier, run.classifier_name)
            opened.subjects.append(Subject(title, PurifiedClassifier(purifier, classifier), name))
    limited, known = run.recipe.audit, {subject.name for subject in opened.subjects} | run.recipe.baselines.keys()
    if unknown := [f"'{name}'" for name in limited.limits if name not in known | limited.attacks.keys()]:
        say(f"warning: audit.limits: no attack or purifier is called {', '.join(unknown)}")
    opened.surrogates = _surrogates(run)
    if not opened.surrogates and run.recipe.audit.views.get("transfer"):
        say("transfer is left out: no companions, and no audit.surrogates")
    return opened


def _names(whats: Sequence[str]) -> dict[str, str]:
    """Short names for the table: the last part of a folder where that tells them apart."""
    last = {what: Path(what).resolve().name if what not in weights.NAMES else what for what in whats}
    return last if len(set(last.values())) == len(last) else {what: what for what in whats}


def _title(source: str) -> str:
    return Path(source).name.removesuffix(".safetensors")


def _images_of(run: Run) -> tuple[Any, ...]:
    # What decides the test images; CIFAR-10 is the same wherever it lies.
    data = run.recipe.data
    return data.name, data.size, data.path if data.name == "folder" else None


def _surrogates(run: Run) -> dict[str, nn.Module]:
    """The recipe's companions, where they are trained or ship, and those that ``audit.surrogates`` names."""
    found: dict[str, nn.Module] = {}

    def add(title: str, model: nn.Module) -> None:
        if title in found:
            raise ConfigError(
                f"two surrogates are called '{title}', as companions and audit.surrogates are: rename one, or drop it"
            )
        found[title] = model

    for stage, config in run.recipe.classifiers().items():
        trained = run.checkpoint(stage)
        ready = str(trained) if (trained / CONFIG_FILE).is_file() else None
        source = config.source or ready or run.recipe.weights.get(stage)
        if stage == "classifier" or source is None:
            continue
        add(stage if source == ready else _title(source), load_classifier(source, run.images("test"), **config.options()))
    for text in run.recipe.audit.surrogates:
        *purifier, source = text.split("+")
        if len(purifier) > 1 or not all((*purifier, source)):
            raise ConfigError(f"audit.surrogates: a classifier, or PURIFIER+CLASSIFIER; got '{text}'")
        model = load_classifier(source, run.images("test"), **run.recipe.classifier.behind(source).options())
        if purifier:
            model = PurifiedClassifier(Purifier.from_pretrained(purifier[0]).placed(run.device), model)
        add("+".join(map(_title, (*purifier, source))), model)
    return found
