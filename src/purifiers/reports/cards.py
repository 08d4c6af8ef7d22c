"""Model cards: how a purifier or classifier was trained, what was measured, and its limits.

The numbers of a card are in its front matter, as the evaluation results that the Hugging Face hub reads; the tables are the
same numbers for people.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from purifiers import hub
from purifiers.attacks import VIEWS
from purifiers.errors import require
from purifiers.evaluation.audit.result import NORMS, Audit
from purifiers.evaluation.records import CLEAN, Record, Result, Results
from purifiers.recipes.baseline_settings import folder_of
from purifiers.recipes.load import NAMES, differences, load_recipe, parse_recipe
from purifiers.recipes.schema import STARTS
from purifiers.reports.render import Table, epsilon_of, page, percent, span, text
from purifiers.reports.tables import row_of, select, ssim_of, through_purifier

_NOT_THE_RECIPE = ("evaluation", "audit", "baselines", "variants", "weights", "seed", "data.path", "data.test_limit")
"""Keys of a recipe that do not change what is trained."""


class Measurement(Result):
    """One result in a card's front matter.

    Attributes as in :class:`purifiers.evaluation.records.Record`, but ``epsilon`` as tables have it, such as ``128/255 (L2)``,
    ``accuracy`` and its 95 % ``interval`` in %, and ``images``, their number.
    """

    dataset: str
    classifier: str
    attack: str
    view: str
    epsilon: str
    images: int
    accuracy: float
    interval: tuple[float, float]
    psnr: float


def model_card(
    name: str, results: Sequence[Results], location: str | None = None, audit: Audit | None = None, notes: Sequence[str] = ()
) -> str:
    """The card of a purifier, in Markdown with the front matter of the Hugging Face hub.

    Args:
        name: of the purifier.
        results: of the run that trained it, then of any others that measured the same purifier.
        location: where ``from_pretrained`` finds it, if that is not the name.
        audit: of that run alone: its worst cases are rows of the first table, in the norms in which it was attacked white-box.
        notes: paragraphs for the end, in Markdown.
    """
    first = results[0]
    recipe = first.trained or first.recipe
    measured = [[*select(one).values(), *through_purifier(one)] for one in results]
    if audit is not None:
        measured[0] += _worst_cases(audit)
    records = (record for group in measured for record in group)
    stages = {}
    for stage, history in first.training.items():
        start = recipe.get(stage, {}).get("start")
        if start in STARTS:
            start = None
        start = start and (Path(start).name if Path(start).is_absolute() else start)
        if not stage.startswith(folder_of("")):  # a baseline
            stages[stage] = (len(history), sum(epoch["seconds"] for epoch in history), start)
    return page(
        "card.md.j2",
        metadata=_metadata(name, recipe["data"]["name"], map(_measurement, records)),
        name=name,
        example=Markup(hub.example(location or name)),
        results=first,
        recipe=recipe,
        starts=STARTS,
        redrawn=not recipe["purifier"].get("residual") and not recipe["purifier"].get("skip_every", 2),
        changed=_changed(recipe),
        stages=stages,
        tables=[Markup(_table(group).markdown()) for group in measured],
        notes=map(Markup, notes),
    )


def classifier_card(name: str, trained: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The card of a classifier, in Markdown with the front matter of the Hugging Face hub.

    Args:
        name: of the classifier.
        trained: ``dataset``, ``depth`` of the ResNet; ``recipe``, ``stage``, ``seed``, ``precision`` of its training, and its
            ``settings``, ``epochs`` and ``seconds``; ``accuracy`` (a share) on the test set of so many ``images``, measured at
            ``commit``; ``unseen``, whether no purifier was trained with it.
        notes: paragraphs for the end, in Markdown.
    """
    about = {"pipeline_tag": "image-classification", "tags": ["image-classification"]}
    result = (trained["dataset"], float(percent(trained["accuracy"])), {"images": trained["images"]})
    metadata = _metadata(name, trained["dataset"], [result], about)
    return page("classifier_card.md.j2", metadata=metadata, name=name, one=trained, notes=map(Markup, notes))


def measurements(card: str | None) -> list[Measurement]:
    """The results in the front matter of a purifier's card; none where it has none, or has those of another library."""
    try:
        return [
            Measurement(dataset=result["dataset"]["name"], accuracy=metric["value"], **metric["args"])
            for model in hub.metadata(card)["model-index"]
            for result in model["results"]
            for metric in result["metrics"]
        ]
    except (KeyError, TypeError, ValidationError):
        return []


def robustness_summary(folder: Path, other: str | None = None) -> str:
    """What was measured of a purifier, in a few sentences: on clean images, and under the strongest attack of each view.

    Views are compared within one epsilon, if there is one in which both were measured.

    Args:
        folder: of the purifier, with its card.
        other: the classifier behind it, if it may be another than the card's, for a word of warning.

    Returns:
        The sentences, in plain text; without a card with numbers, that nothing is known.
    """
    found = measurements(hub.card_in(folder))
    own = [one for one in found if one.classifier == found[0].classifier]
    clean = next((one for one in own if one.view == CLEAN), None)
    if clean is None:
        return "There is no model card with numbers beside this purifier: its robustness is not known here."
    blind = [one for one in own if one.view == "blind"]
    full = [one for one in own if one.view not in ("blind", CLEAN)]
    epsilons = [{one.epsilon for one in view} for view in (blind, full)]
    shared = set.intersection(*epsilons) - {"-"} or set.union(*epsilons)
    within = [[one for one in view if one.epsilon in shared] for view in (blind, full)]
    strongest = [min(view, key=lambda one: one.accuracy, default=None) for view in within]
    return text("robustness_summary", clean=clean, strongest=strongest, other=other)


def _worst_cases(audit: Audit) -> list[Record]:
    """The worst cases of an audit of one purifier, as records of an attack that is called so."""
    (name,) = audit.purifiers
    return [
        worst.model_copy(update={"view": "full", "attack": f"worst of the audit{', L2' if norm == 'l2' else ''}"})
        for norm in NORMS
        if (worst := audit.worst(name, norm)) and audit.worst(name, norm, "white-box")
    ]


def _metadata(
    name: str, dataset: str, results: Iterable[tuple[str, float, dict[str, Any]]], about: Mapping[str, Any] = hub.METADATA
) -> Markup:
    """The front matter of a card: its results as data set, accuracy in %, and what else belongs to them."""
    library = require("huggingface_hub")
    found = [
        library.EvalResult(
            task_type="image-classification",
            dataset_type=tested,
            dataset_name=tested,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=accuracy,
            metric_name=f"accuracy ({arguments['attack']}, view {arguments['view']})" if "attack" in arguments else "accuracy",
            metric_args=arguments,
        )
        for tested, accuracy, arguments in results
    ]
    about = {**hub.METADATA, **about, "datasets": [dataset]}
    return Markup(library.ModelCardData(**about, model_name=name, eval_results=found).to_yaml().strip())


def _measurement(record: Record) -> tuple[str, float, dict[str, Any]]:
    one = Measurement(
        dataset=record.dataset,
        classifier=record.classifier,
        attack=record.attack,
        view=record.view,
        epsilon=epsilon_of(record),
        images=record.n,
        accuracy=float(percent(record.accuracy)),
        interval=(float(percent(record.ci95[0])), float(percent(record.ci95[1]))),
        psnr=round(record.psnr, 1),
    )
    return one.dataset, one.accuracy, one.model_dump(mode="json", exclude={"dataset", "accuracy"})


def _table(records: Sequence[Record]) -> Table:
    rows = []
    for one in records:
        undefended = "-" if one.view not in (CLEAN, "blind") else percent(one.accuracy_undefended)
        likeness = [f"{one.psnr:.1f}", ssim_of(one)]
        numbers = [epsilon_of(one), f"{one.n:,}", undefended, percent(one.accuracy), span(one.ci95), *likeness]
        rows.append([row_of(one.attack), "-" if one.view == CLEAN else one.view, *numbers])
    views = {record.view for record in records}
    caption = text("card_table", views=[view for view in VIEWS if view in views])
    header = ["attack", "view", "epsilon", "images", "undefended", "purified", "95 % interval", "PSNR (dB)", "SSIM"]
    return Table(f"In front of {records[0].classifier}", caption, header, rows)


def _changed(recipe: Mapping[str, Any]) -> list[str] | None:
    """What the training has changed of the shipped recipe of its name; None if there is none of that name."""
    name = str(recipe["name"])
    if name not in NAMES:
        return None
    found = differences(load_recipe(name), parse_recipe(recipe))
    # What a stage started from is told beside that stage.
    free = (*_NOT_THE_RECIPE, "teacher_at.start", "student.start")
    return [f"{key} {now}" for key, (_, now) in found.items() if not key.startswith(free)]
