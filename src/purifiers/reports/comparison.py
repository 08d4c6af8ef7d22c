"""Table 1 for all purifiers: ours, the baselines and the paper's columns; and a table of the baselines."""

import math
from collections.abc import Mapping
from typing import Any

from purifiers.console import duration
from purifiers.evaluation.records import BASELINE, CLEAN, Record, Results
from purifiers.recipes.baseline_settings import TrainedBaseline, Untrained, folder_of
from purifiers.recipes.load import parse_recipe
from purifiers.reports import paper
from purifiers.reports.render import Table, half_width, percent, text, title_of
from purifiers.reports.tables import attacked_mean, comparable_attacks, select

OURS = "ours"
PAPERS = "ours, the paper's losses"


def baselines_of(results: Results) -> dict[str, dict[str, Record]]:
    """The records of every baseline under the view blind, by its title, then by attack."""
    names = dict.fromkeys(record.purifier for record in results.records if record.purifier.startswith(BASELINE))
    return {name.removeprefix(BASELINE): select(results, name) for name in names}


def purifiers_of(results: Results) -> dict[str, dict[str, Record]]:
    """The same with ours first, and ours with the paper's losses alone if that is another; empty without baselines."""
    baselines, papers = baselines_of(results), select(results, "student_paper")
    return {OURS: select(results), **({PAPERS: papers} if papers else {}), **baselines} if baselines else {}


def table_1_for_all(results: Results) -> Table:
    """Every purifier under every attack by an attacker who does not know it, and what it costs."""
    purifiers, known = purifiers_of(results), comparable_attacks(results)
    ours = purifiers[OURS]
    rows = [["no purifier", *(percent(record.accuracy_undefended) for record in ours.values()), *_cost(results, "classifier")]]
    for title, records in purifiers.items():
        cost = _cost(results, "student" if title in (OURS, PAPERS) else BASELINE + title)
        rows.append([title, *(percent(records[attack].accuracy) for attack in ours), *cost])
    for title, column in paper.TABLE_1.items() if known else ():
        theirs = [f"{column[attack]:.2f}" if attack in known else "-" for attack in ours]
        rows.append([f"{title}, as reported", *theirs, "-", "-", "-"])
    own = {title: records for title, records in purifiers.items() if _own_classifier(ours, records)}
    others = {title: records for title, records in purifiers.items() if title not in own}
    caption = text(
        "comparison_table",
        ours=ours,
        purifiers=[record for records in purifiers.values() for record in records.values()],
        fewer={title: found for title, found in others.items() if any(found[attack].n < ours[attack].n for attack in ours)},
        own=own,
        comparable=known,
    )
    header = ["purifier", *map(title_of, ours), "parameters", "MFLOP an image", "images/s"]
    return Table("Table 1. Every purifier against each attack (view blind)", caption, header, rows)


def table_of_baselines(results: Results) -> Table:
    """The size of each baseline, and how it was trained."""
    recipe = parse_recipe(results.recipe)
    compared = {title: recipe.baselines[title] for title in baselines_of(results)}
    rows = []
    for title, baseline in compared.items():
        size, original, trained, time = _size(baseline.network.network, baseline.network.arguments), "-", "-", "-"
        if isinstance(baseline, TrainedBaseline):
            history = results.training.get(folder_of(title), [])
            limits = [limit for limit in (baseline.limit, recipe.data.limit) if limit is not None]
            images = f"{min(limits):,}" if limits else "all"
            trained = f"{images} images, {len(history) or baseline.training.epochs} epochs"
            time = duration(sum(record["seconds"] for record in history)) if history else "-"
            original = paper.ORIGINALS.get(baseline.kind, "-")
        elif isinstance(baseline, Untrained) and baseline.around:
            size += f" around {baseline.around}"
        rows.append([title, size, original, trained, time])
    caption = text("baselines_table", kinds={baseline.kind for baseline in compared.values()})
    return Table("What was compared", caption, ["purifier", "size", "in its paper", "trained on", "time"], rows)


def sentence(results: Results) -> str:
    """Which purifier is best in the mean over the attacks, in a sentence; empty where nothing was compared."""
    ours = select(results)
    # A baseline around ours is another use of ours, and no rival.
    compared = baselines_of(results)
    rivals = [found for title, found in compared.items() if results.recipe["baselines"][title].get("around") != "student"]
    if not rivals or len(ours) < 2:
        return ""
    best = max(rivals, key=attacked_mean)
    return text(
        "comparison",
        ours=attacked_mean(ours),
        best=best[CLEAN].purifier.removeprefix(BASELINE),
        theirs=attacked_mean(best),
        count=len(rivals),
        own_classifier=best[CLEAN].classifier if _own_classifier(ours, best) else None,
        width=math.hypot(half_width(ours.values()), half_width(best.values())),
    )


def _own_classifier(ours: dict[str, Record], theirs: dict[str, Record]) -> bool:
    return theirs[CLEAN].classifier != ours[CLEAN].classifier


def _cost(results: Results, name: str) -> list[str]:
    cost = results.costs.get(name)
    if cost is None:
        return ["-"] * 3
    return [f"{cost.parameters:,}", f"{cost.flops / 1e6:,.0f}" if cost.flops else "-", f"{cost.images_per_second:,.0f}"]


def _size(network: str, arguments: Mapping[str, Any]) -> str:
    shown = []
    for key, value in arguments.items():
        if isinstance(value, dict):
            value = f"{value['network']}{value.get('depth', '')}"
        shown.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return f"{network}: {', '.join(shown)}" if shown else network
