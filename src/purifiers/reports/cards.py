"""Model cards: training, results and limits of a purifier or classifier.

The numbers are in the front matter, as the evaluation results that the Hugging Face hub reads, and in tables for people.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from purifiers import hub
from purifiers.attacks import VIEWS, show_fraction
from purifiers.errors import require
from purifiers.evaluation.audit.result import NORMS, Audit
from purifiers.evaluation.records import CLEAN, Record, Result, Results, read_attacks
from purifiers.recipes.baseline_settings import folder_of
from purifiers.recipes.load import NAMES, NOT_TRAINING, differences, load_recipe, parse_recipe
from purifiers.recipes.training_settings import STARTS
from purifiers.reports.render import Table, cells, epsilon_of, page, percent, text
from purifiers.reports.tables import select, through_purifier

_SHOWN = ("seed", "data.path", "teacher_at.start", "student.start")
"""Keys of a recipe that are elsewhere in the card, or in nobody else's interest."""


class Measurement(Result):
    """One result in a card's front matter.

    Attributes as in :class:`purifiers.evaluation.records.Record`, but ``epsilon`` as in tables, such as ``128/255 (L2)``,
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
        results: of the run that trained it, then of others that measured the same purifier.
        location: where ``from_pretrained`` finds it, if that is not the name.
        audit: of that run alone: its white-box worst cases are rows of the first table.
        notes: paragraphs for the end, in Markdown.
    """
    results = [one.titled() for one in results]
    recipe = results[0].trained or results[0].recipe
    own, place = next(one for one in _trainings(recipe) if one[0]["epochs"])
    measured = [[*select(one).values(), *through_purifier(one)] for one in results]
    measured[0] += _worst_cases(audit)
    return page(
        "card.md.j2",
        metadata=_metadata(name, recipe["data"]["name"], (_measurement(record) for group in measured for record in group)),
        name=name,
        example=hub.example(location or name),
        results=results[0],
        recipe=recipe,
        starts=STARTS,
        baseline=folder_of(""),
        changed=_changed(recipe),
        attacks=dict.fromkeys(attack.title for attack in read_attacks(recipe["training_attacks"]).values()),
        own=[attack.title for attack in read_attacks({"own": own.get("attack")}).values()],
        place=place,
        tables=map(_table, measured),
        notes=notes,
    )


def _trainings(recipe: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The trainings that may have made the purifier withstand attacks on itself, the last first; and on what they attack."""
    yield recipe["student"], "through both networks"
    yield recipe["teacher_at"], "through both networks"
    if recipe.get("latent"):
        yield recipe["latent"]["encoder"], "on its encoder"
    yield {"epochs": 1}, ""  # somebody else's


def classifier_card(name: str, trained: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The card of a classifier, in Markdown with the front matter of the Hugging Face hub.

    Args:
        trained: ``dataset``, ``depth`` of the ResNet; ``recipe``, ``stage``, ``seed``, ``precision`` of its training, and its
            ``settings``, ``epochs`` and ``seconds``; ``accuracy`` (a share) on the test set of so many ``images``, measured at
            ``commit``; ``unseen``, whether no purifier was trained with it.
        notes: paragraphs for the end, in Markdown.
    """
    about = {"pipeline_tag": "image-classification", "tags": ["image-classification"]}
    result = (trained["dataset"], float(percent(trained["accuracy"])), {"images": trained["images"]})
    metadata = _metadata(name, trained["dataset"], [result], about)
    return page("classifier_card.md.j2", metadata=metadata, name=name, one=trained, notes=notes)


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
    """The measured accuracy of a purifier in a few sentences: on clean images, and under the strongest attack of each view.

    Views are compared within one epsilon, if there is one in which both were measured.

    Args:
        folder: of the purifier, with its card; without numbers in it, nothing is known.
        other: the classifier behind it, if it may differ from the card's, for a warning.
    """
    found = measurements(hub.card_in(folder))
    own = [one for one in found if one.classifier == found[0].classifier]
    clean = next((one for one in own if one.view == CLEAN), None)
    blind, full = ([one for one in own if one.view != CLEAN and (one.view == "blind") == known] for known in (True, False))
    shared = {one.epsilon for one in blind} & {one.epsilon for one in full} - {"-"}
    within = [[one for one in view if one.epsilon in shared or not shared] for view in (blind, full)]
    strongest = [min(view, key=lambda one: one.accuracy, default=None) for view in within]
    return text("robustness_summary", clean=clean, strongest=strongest, other=other)


def _worst_cases(audit: Audit | None) -> list[Record]:
    """The worst cases of an audit of one purifier, as records of an attack of that name."""
    if audit is None:
        return []
    (name,) = audit.purifiers
    worst = {norm: audit.worst(name, norm) for norm in NORMS if audit.worst(name, norm, "white-box")}
    titles = {"linf": "worst of the audit, ", "l2": "worst of the audit, L2 "}
    named = [(one, titles[norm] + show_fraction(one.epsilon)) for norm, one in worst.items() if one]
    return [one.model_copy(update={"view": "full", "attack": title}) for one, title in named]


def _metadata(
    name: str, dataset: str, results: Iterable[tuple[str, float, dict[str, Any]]], about: Mapping[str, Any] = hub.METADATA
) -> str:
    """The front matter of a card: its results as data set, accuracy in %, and what else belongs to them."""
    library = require("huggingface_hub")
    found = []
    for tested, accuracy, args in results:
        metric = f"accuracy ({args['attack']}, view {args['view']})" if "attack" in args else "accuracy"
        value = ("image-classification", tested, tested, "accuracy", accuracy)
        found.append(library.EvalResult(*value, dataset_split="test", metric_name=metric, metric_args=args))
    about = {**hub.METADATA, **about, "datasets": [dataset]}
    return str(library.ModelCardData(**about, model_name=name, eval_results=found).to_yaml().strip())


def _measurement(record: Record) -> tuple[str, float, dict[str, Any]]:
    args = record.model_dump(include={"classifier", "attack", "view"}) | {
        "epsilon": epsilon_of(record),
        "images": record.n,
        "interval": [float(percent(end)) for end in record.ci95],
        "psnr": round(record.psnr, 1),
    }
    return record.dataset, float(percent(record.accuracy)), args


def _table(records: Sequence[Record]) -> Table:
    columns = ["attack", "view", "images", "undefended", "purified", "95 % interval", "PSNR (dB)", "SSIM"]
    views = {record.view for record in records}
    caption = text("card_table", views=[view for view in VIEWS if view in views])
    rows = [cells(record, *columns) for record in records]
    return Table(f"In front of {records[0].classifier}", caption, columns, rows).of(records)


def _changed(recipe: Mapping[str, Any]) -> list[str] | None:
    """What the training has changed of the shipped recipe of its name; None if there is none of that name."""
    if recipe["name"] not in NAMES:
        return None
    found = differences(load_recipe(recipe["name"]), parse_recipe(recipe))
    return [f"{key} {now}" for key, (_, now) in found.items() if not key.startswith((*NOT_TRAINING, *_SHOWN))]
