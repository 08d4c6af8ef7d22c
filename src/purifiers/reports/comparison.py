"""Table 1 for all purifiers: ours, the baselines and the paper's columns, and what each baseline is."""

import math
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from purifiers.console import duration
from purifiers.evaluation.records import BASELINE, CLEAN, Cost, Record, Results
from purifiers.recipes.baseline_settings import TrainedBaseline, Untrained, folder_of
from purifiers.recipes.load import parse_recipe
from purifiers.reports import paper
from purifiers.reports.tables import Table, comparable_attacks, half_width, images_of, percent, select

OURS = "ours"


def purifiers_of(results: Results) -> dict[str, dict[str, Record]]:
    """The records of ours and of every baseline under the view blind, by the titles of their rows, then by attack."""
    names = dict.fromkeys(record.purifier for record in results.records if record.purifier.startswith(BASELINE))
    rows = {OURS: select(results), **{name.removeprefix(BASELINE): select(results, name) for name in names}}
    return rows if len(rows) > 1 else {}


def table_1_for_all(results: Results) -> Table:
    """Every purifier against every attack of an attacker who does not know of it, and what it costs."""
    purifiers = purifiers_of(results)
    ours = purifiers[OURS]
    attacks = list(ours)
    alone = [percent(ours[attack].accuracy_undefended) for attack in attacks]
    rows = [["no purifier", *alone, *_cost(results.costs.get("classifier"))]]
    for title, records in purifiers.items():
        cost = results.costs.get("student" if title == OURS else BASELINE + title)
        rows.append([title, *(percent(records[attack].accuracy) for attack in attacks), *_cost(cost)])
    known = comparable_attacks(results)
    for title, column in paper.TABLE_1.items() if known else ():
        theirs = [f"{column[attack]:.2f}" if attack in known else "-" for attack in attacks]
        rows.append([f"{title}, as reported", *theirs, "-", "-", "-"])
    names = ["clean" if attack == CLEAN else attack for attack in attacks]
    header = ["purifier", *names, "parameters", "MFLOP an image", "images/s"]
    return Table("Table 1. Every purifier against each attack (view blind)", _caption(results, purifiers), header, rows)


def table_of_baselines(results: Results) -> Table:
    """What each baseline is: its size, and how it was trained."""
    recipe = parse_recipe(results.recipe)
    everything = recipe.data.limit
    compared = {title: recipe.baselines[title] for title in purifiers_of(results) if title != OURS}
    rows = []
    for title, baseline in compared.items():
        size = _size(baseline.network.network, baseline.network.arguments)
        if not isinstance(baseline, TrainedBaseline):
            around = baseline.around if isinstance(baseline, Untrained) else None
            rows.append([title, size + (f" around {around}" if around else ""), "-", "-", "-"])
            continue
        history = results.training.get(folder_of(title), [])
        counts = [count for count in (baseline.limit, everything) if count is not None]
        images = f"{min(counts):,}" if counts else "all"
        epochs = len(history) or baseline.training.epochs
        seconds = duration(sum(record["seconds"] for record in history)) if history else "-"
        original = paper.ORIGINALS.get(baseline.kind, "-")
        rows.append([title, size, original, f"{images} images, {epochs} epochs", seconds])
    kinds = {baseline.kind for baseline in compared.values()}
    notes = {
        "nrp": "NRP learns from features of the classifier that it is trained for.",
        "soap": "SOAP comes with a classifier of its own, which its method trains together with the auxiliary task.",
    }
    caption = " ".join(
        ["The size that was used, beside that of the baseline's own paper.", *(notes[kind] for kind in notes if kind in kinds)]
    )
    return Table("What was compared", caption, ["purifier", "size", "in its paper", "trained on", "time"], rows)


def comparison_sentence(results: Results) -> list[str]:
    """Who is best in the mean over attacks; empty where nothing was compared."""
    purifiers = purifiers_of(results)
    baselines = results.recipe.get("baselines", {})
    ours = purifiers.pop(OURS, {})
    # Another use of ours is no rival of ours.
    rivals = {title: records for title, records in purifiers.items() if baselines[title].get("around") != "student"}
    if not rivals or len(ours) < 2:
        return []
    best = max(rivals, key=lambda title: _mean(rivals[title]))
    gap = 100 * (_mean(ours) - _mean(rivals[best]))
    width = math.hypot(half_width(ours.values()), half_width(rivals[best].values()))
    chance = ", which may be chance" if abs(gap) < width else ""
    where = f" (in front of {rivals[best][CLEAN].classifier})" if _own_classifier(ours, rivals[best]) else ""
    verdict = "is better than" if gap > 0 else "is NOT better than"
    return [
        f"In the mean over attacks ours has {percent(_mean(ours))} % and {verdict} the best of {len(rivals)} other purifiers, "
        f"{best}{where}, with {percent(_mean(rivals[best]))} %{chance} (view blind)."
    ]


def _own_classifier(ours: dict[str, Record], theirs: dict[str, Record]) -> bool:
    return theirs[CLEAN].classifier != ours[CLEAN].classifier


def _mean(records: dict[str, Record]) -> float:
    return mean(record.accuracy for attack, record in records.items() if attack != CLEAN)


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["-"] * 3
    flops = f"{cost.flops / 1e6:,.0f}" if cost.flops else "-"
    return [f"{cost.parameters:,}", flops, f"{cost.images_per_second:,.0f}"]


def _size(network: str, arguments: Mapping[str, Any]) -> str:
    shown = []
    for key, value in arguments.items():
        if isinstance(value, dict):
            shown.append(f"{key} {value['network']}{value.get('depth', '')}")
        else:
            shown.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return f"{network}: {', '.join(shown)}" if shown else network


def _caption(results: Results, purifiers: dict[str, dict[str, Record]]) -> str:
    ours = purifiers[OURS]
    own = {title: records for title, records in purifiers.items() if _own_classifier(ours, records)}
    text = (
        f"Accuracy in % after purification, clean images first, on {images_of(ours.values())}; the attacker knows the "
        "classifier and not the purifier. A 95 % interval reaches up to "
        f"{half_width(record for records in purifiers.values() for record in records.values()):.1f} points to each side."
    )
    fewer = _fewer(ours, {title: records for title, records in purifiers.items() if title not in (OURS, *own)})
    if fewer:
        text += f" On fewer images: {fewer}."
    if own:
        listed = "; ".join(
            f"{title}: {records[CLEAN].classifier.split(' of ')[0]}, alone {percent(records[CLEAN].accuracy_undefended)} on "
            f"{records[CLEAN].n:,} clean images and {_undefended(records.values())} under attack"
            for title, records in own.items()
        )
        text += f" SOAP purifies for classifiers of its own, which are attacked themselves ({listed})."
    text += (
        " Parameters, operations of an image (matrix products and convolutions, in MFLOP) and images/s on this machine are "
        "those of the purifier, in the first row of the classifier."
    )
    if own:
        text += " SOAP's are of its whole optimisation, and include its classifier."
    text += " - stands for none, or for what is not reported."
    if comparable_attacks(results):
        text += (
            f" The last rows are the numbers that the paper reports, with a ResNet-56 of {paper.CLEAN_UNDEFENDED} % on clean "
            "images; it does not report clean accuracy after purification."
        )
    return text


def _fewer(ours: dict[str, Record], others: dict[str, dict[str, Record]]) -> str:
    found = [
        f"{title} {records[CLEAN].n:,}"
        for title, records in others.items()
        if any(records[attack].n < ours[attack].n for attack in ours)
    ]
    return ", ".join(found)


def _undefended(records: Iterable[Record]) -> str:
    shares = [record.accuracy_undefended for record in records if record.attack != CLEAN]
    return f"{percent(min(shares))} to {percent(max(shares))}" if shares else "-"
