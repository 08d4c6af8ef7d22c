"""Open runs, and purifiers by name or folder, for an audit, with the recipe's baselines and companions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from purifiers import weights
from purifiers.classifiers.load import load_classifier, watch
from purifiers.console import say
from purifiers.errors import ConfigError
from purifiers.evaluation.audit.attack import Subject
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.audit.run import audit_all
from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.registry import CONFIG_FILE
from purifiers.runs import Run, is_run, open_defended, own_classifier
from purifiers.seeds import seed_for


@dataclass
class Opened:
    """Everything that is audited together."""

    run: Run  # the first; its images, settings, baselines and companions are used
    subjects: list[Subject] = field(default_factory=list)
    surrogates: dict[str, nn.Module] = field(default_factory=dict)  # attacked in place of the subjects under ``transfer``

    def add(self, name: str, purifier: Purifier, run: Run) -> None:
        """Audit ``purifier`` too, in front of the run's classifier; SOAP in front of its own."""
        classifier, title = own_classifier(name, purifier) or (run.classifier, run.classifier_name)
        self.subjects.append(Subject(name, PurifiedClassifier(purifier, classifier), title))

    def add_baselines(self) -> None:
        """Audit the run's baselines too, those that are ready."""
        for title, purifier in self.run.baselines.items():
            self.add(title, purifier, self.run)

    def audit(self, cache: Path) -> Audit:
        """Audit them, keeping finished work in ``cache``; raises as :func:`purifiers.evaluation.audit.run.audit` does."""
        recipe = self.run.recipe
        unchanged = watch({f"the classifier behind {one.name}": one.defended.classifier for one in self.subjects})
        seed, size = seed_for(recipe.seed, "evaluation"), recipe.evaluation.batch_size
        data = self.run.images("test")
        found = audit_all(self.subjects, data, recipe.audit, self.surrogates, seed=seed, batch_size=size, cache=cache)
        unchanged()
        return found


def open_audited(
    whats: Sequence[str],
    overrides: Sequence[str | tuple[str, Any]],
    folder: Path,
    *,
    recipe: str | None = None,
    device: str = "auto",
) -> Opened:
    """Open everything that is to be audited.

    Args:
        whats: folders of runs, names of shipped purifiers or folders of saved ones.
        overrides, recipe: see :func:`purifiers.runs.open_defended`; ``recipe`` is for those that are no runs.
        folder: where baselines of a purifier that is no run are trained.
        device: see :func:`purifiers.device.find_device`.

    Raises:
        ConfigError: other images than the first's, the same purifier or title of a surrogate twice, or see the parts.
        MissingFileError, CheckpointError: see :func:`purifiers.runs.open_defended`.
    """
    if duplicates := [what for what in whats if whats.count(what) > 1]:
        raise ConfigError(f"duplicate purifier: {duplicates[0]}")
    runs = {what: open_defended(what, overrides, folder, None if is_run(what) else recipe, device) for what in whats}
    run = next(iter(runs.values()))
    opened = Opened(run)
    names = _names(list(runs))
    for what, one in runs.items():
        if _images_of(one) != _images_of(run):
            raise ConfigError(
                f"{what} uses other images ({one.recipe.data.name}) than {whats[0]} ({run.recipe.data.name}): audit them apart"
            )
        opened.add(names[what], one.purifiers["student"], one)
    settings = run.recipe.audit
    known = {*names.values(), *run.recipe.baselines, *settings.attacks}
    if unknown := [f"'{name}'" for name in settings.limits if name not in known]:
        say(f"warning: audit.limits: no attack or purifier is called {', '.join(unknown)}")
    opened.surrogates = _surrogates(run)
    if not opened.surrogates and settings.views.get("transfer"):
        say("transfer is left out: no companions, and no audit.surrogates")
    return opened


def _names(whats: Sequence[str]) -> dict[str, str]:
    """Short names for the table: the last part of each folder, if these differ."""
    last = {what: Path(what).resolve().name if what not in weights.NAMES else what for what in whats}
    return last if len(set(last.values())) == len(last) else {what: what for what in whats}


def _title(source: str) -> str:
    return Path(source).name.removesuffix(".safetensors")


def _images_of(run: Run) -> tuple[Any, ...]:
    # CIFAR-10 is the same in every folder.
    data = run.recipe.data
    return data.name, data.size, data.path if data.name == "folder" else None


def _surrogates(run: Run) -> dict[str, nn.Module]:
    """The recipe's companions, if they are trained or ship, and those that ``audit.surrogates`` names."""
    found: list[tuple[str, nn.Module]] = []
    for stage, config in run.recipe.classifiers().items():
        trained = run.checkpoint(stage)
        ready = str(trained) if (trained / CONFIG_FILE).is_file() else None
        source = config.source or ready or run.recipe.weights.get(stage)
        if stage != "classifier" and source is not None:
            model = load_classifier(source, run.images("test"), **config.options())
            found.append((stage if source == ready else _title(source), model))
    for text in run.recipe.audit.surrogates:
        *purifier, source = text.split("+")
        if len(purifier) > 1 or not all((*purifier, source)):
            raise ConfigError(f"audit.surrogates: a classifier, or PURIFIER+CLASSIFIER; got '{text}'")
        model = load_classifier(source, run.images("test"), **run.recipe.classifier.behind(source).options())
        if purifier:
            model = PurifiedClassifier(Purifier.from_pretrained(purifier[0]).placed(run.device), model)
        found.append(("+".join(map(_title, (*purifier, source))), model))
    for title, count in Counter(title for title, _ in found).items():
        if count > 1:
            raise ConfigError(f"two surrogates, of companions and audit.surrogates, are called '{title}': rename or drop one")
    return dict(found)
