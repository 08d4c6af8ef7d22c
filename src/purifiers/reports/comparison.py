"""Table 1 for all purifiers: ours, the baselines and the paper's columns; and what each baseline is."""

import math
from collections.abc import Mapping
from typing import Any

from purifiers.console import duration
from purifiers.evaluation.records import BASELINE, CLEAN, Cost, Record, Results
from purifiers.recipes.baseline_settings import TrainedBaseline, Untrained, folder_of
from purifiers.recipes.load import parse_recipe
from purifiers.reports import paper
from purifiers.reports.render import Table, half_width, percent, text, title_of
from purifiers.reports.tables import attacked_mean, comparable_attacks, original_of, select

OURS = "ours"


def purifiers_of(results: Results) -> dict[str, dict[str, Record]]:
    """The records of ours and of every baseline under the view blind, by the titles of their rows, then by attack; empty
    where there are no baselines."""
    names = dict.fromkeys(record.purifier for record in results.records if record.purifier.startswith(BASELINE))
    rows = {OURS: select(results), **{name.removeprefix(BASELINE): select(results, name) for name in names}}
    return rows if len(rows) > 1 else {}


def table_1_for_all(results: Results) -> Table:
    """Every purifier under every attack by an attacker who does not know it, and what it costs."""
    purifiers = purifiers_of(results)
    ours = purifiers[OURS]
    alone = [percent(record.accuracy_undefended) for record in ours.values()]
    rows = [["no purifier", *alone, *_cost(results.costs.get("classifier"))]]
    for title, records in purifiers.items():
        cost = results.costs.get("student" if title == OURS else BASELINE + title)
        rows.append([title, *(percent(records[attack].accuracy) for attack in ours), *_cost(cost)])
    known = comparable_attacks(results)
    for title, column in paper.TABLE_1.items() if known else ():
        theirs = [f"{column[attack]:.2f}" if attack in known else "-" for attack in ours]
        rows.append([f"{title}, as reported", *theirs, "-", "-", "-"])
    header = ["purifier", *map(title_of, ours), "parameters", "MFLOP an image", "images/s"]
    own = {title: records for title, records in purifiers.items() if _own_classifier(ours, records)}
    fewer = {
        title: records
        for title, records in purifiers.items()
        if title not in own and any(records[attack].n < ours[attack].n for attack in ours)
    }
    caption = text(
        "comparison_table",
        ours=ours,
        purifiers=[record for records in purifiers.values() for record in records.values()],
        fewer=fewer,
        own=own,
        original=original_of(results),
    )
    return Table("Table 1. Every purifier against each attack (view blind)", caption, header, rows)


def table_of_baselines(results: Results) -> Table:
    """What each baseline is: its size, and how it was trained."""
    recipe = parse_recipe(results.recipe)
    compared = {title: recipe.baselines[title] for title in purifiers_of(results) if title != OURS}
    rows = []
    for title, baseline in compared.items():
        size = _size(baseline.network.network, baseline.network.arguments)
        if not isinstance(baseline, TrainedBaseline):
            around = baseline.around if isinstance(baseline, Untrained) else None
            rows.append([title, size + (f" around {around}" if around else ""), "-", "-", "-"])
            continue
        history = results.training.get(folder_of(title), [])
        counts = [count for count in (baseline.limit, recipe.data.limit) if count is not None]
        trained = f"{f'{min(counts):,}' if counts else 'all'} images, {len(history) or baseline.training.epochs} epochs"
        time = duration(sum(record["seconds"] for record in history)) if history else "-"
        rows.append([title, size, paper.ORIGINALS.get(baseline.kind, "-"), trained, time])
    caption = text("baselines_table", kinds={baseline.kind for baseline in compared.values()})
    return Table("What was compared", caption, ["purifier", "size", "in its paper", "trained on", "time"], rows)


def sentence(results: Results) -> str:
    """Which purifier is best in the mean over the attacks, in a sentence; empty where nothing was compared."""
    purifiers = purifiers_of(results)
    baselines = results.recipe.get("baselines", {})
    ours = purifiers.pop(OURS, {})
    # A baseline around ours is another use of ours, and no rival.
    rivals = {title: records for title, records in purifiers.items() if baselines[title].get("around") != "student"}
    if not rivals or len(ours) < 2:
        return ""
    best = max(rivals, key=lambda title: attacked_mean(rivals[title]))
    gap = attacked_mean(ours) - attacked_mean(rivals[best])
    width = math.hypot(half_width(ours.values()), half_width(rivals[best].values()))
    return text(
        "comparison",
        ours=attacked_mean(ours),
        best=best,
        theirs=attacked_mean(rivals[best]),
        count=len(rivals),
        own_classifier=rivals[best][CLEAN].classifier if _own_classifier(ours, rivals[best]) else None,
        better=gap > 0,
        chance=100 * abs(gap) < width,
    )


def _own_classifier(ours: dict[str, Record], theirs: dict[str, Record]) -> bool:
    return theirs[CLEAN].classifier != ours[CLEAN].classifier


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["-"] * 3
    flops = f"{cost.flops / 1e6:,.0f}" if cost.flops else "-"
    return [f"{cost.parameters:,}", flops, f"{cost.images_per_second:,.0f}"]


def _size(network: str, arguments: Mapping[str, Any]) -> str:
    shown = []
    for key, value in arguments.items():
        if isinstance(value, dict):
            value = f"{value['network']}{value.get('depth', '')}"
        shown.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return f"{network}: {', '.join(shown)}" if shown else network
