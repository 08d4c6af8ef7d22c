"""The tables of a run, from its results: the paper's 1 to 3, all purifiers beside each other, threat models, training."""

import math
from collections.abc import Mapping, Sequence
from operator import itemgetter
from statistics import mean
from typing import Any

from purifiers.attacks import VIEWS
from purifiers.console import duration
from purifiers.evaluation.records import BASELINE, CLEAN, VARIANT, Record, Results
from purifiers.recipes.baseline_settings import TrainedBaseline, Untrained, folder_of
from purifiers.recipes.load import parse_recipe
from purifiers.recipes.training_settings import GUIDANCE, STARTS
from purifiers.reports import paper
from purifiers.reports.render import Table, cells, half_width, percent, text, title_of
from purifiers.weights import PURIFIERS

COMPARISONS = (("student", "student_at"), ("student", "student_nt"), ("student_at", "teacher_at"), ("student_nt", "teacher_at"))
"""The better and the worse purifier of Table 2, as the paper claims, with its losses."""
OURS = "ours"
PAPERS = "ours, the paper's losses"
_OTHER_INPUT = {"adversarial": "clean", "clean": "adversarial"}


def select(results: Results, purifier: str = "student", view: str = "blind") -> dict[str, Record]:
    """A purifier's records under one view by attack, the clean row first."""
    chosen = [r for r in results.records if r.purifier == purifier and r.view in (CLEAN, view)]
    return {record.attack: record for record in chosen}


def through_purifier(results: Results) -> list[Record]:
    """The records of the student under the views of attackers who know, or query, the purifier."""
    attacked = [r for r in results.records if r.purifier == "student" and r.view != CLEAN]
    return [r for r in attacked if VIEWS[r.view].group != "gray-box"]


def comparable_attacks(results: Results) -> set[str]:
    """The titles of the attacks that are the paper's, by their parameters, on the paper's data set."""
    if results.recipe["data"]["name"] != "cifar10":
        return set()
    attacks = results.attacks()
    return {title for name, title in results.titles().items() if paper.ATTACKS.get(title) == attacks[name]}


def table_1(results: Results) -> Table:
    """The paper's Table 1: this purifier under every attack by an attacker who does not know it."""
    records, comparable = select(results), comparable_attacks(results)
    compared = paper.TABLE_1 if comparable else {}
    columns = ("attack", "images", "undefended", "purified", "95 % interval", "agreement", "PSNR (dB)", "SSIM")
    rows = [
        cells(record, *columns) + [f"{theirs[attack]:.2f}" if attack in comparable else "-" for theirs in compared.values()]
        for attack, record in records.items()
    ]
    caption = text("table_1", records=records.values(), comparable=comparable)
    beside_others = any(record.purifier.startswith(BASELINE) for record in results.records)
    title = "Table 1 in detail. Ours" if beside_others else "Table 1. Purification"
    details = ("images", "95 % interval", "PSNR (dB)", "SSIM")
    return Table(f"{title} against each attack (view blind)", caption, [*columns, *compared], rows, details)


def table_2_rows(results: Results) -> dict[str, tuple[str, str]]:
    """The rows of Table 2, by their names in the paper's: title and purifier.

    Three are not in the paper: two with the other reading of equation 5, and a student that is trained beyond its losses.
    """
    other = _OTHER_INPUT[results.recipe["student"]["nt_teacher_input"]]
    own = "student_paper" if own_losses(results) else "student"
    rows = {
        "teacher_at": ("AT, no distillation", "teacher_at"),
        "student_at": ("student of AT", "student_at"),
        "student_nt": ("student of NT", "student_nt"),
        "student": ("student of AT and NT", own),
    }
    beyond = {
        "student_nt_other": (f"student of NT, which sees {other}", "student_nt_other"),
        "student_other": (f"student of AT and NT, which sees {other}", "student_other"),
        "own": ("the student of this run", "student" if own != "student" else ""),
    }
    return rows | {name: row for name, row in beyond.items() if select(results, row[1])}


def own_losses(results: Results) -> bool:
    """Whether the run's student was trained with other losses than the paper's, for which there is another row."""
    return bool(select(results, "student_paper"))


def has_table_2(results: Results) -> bool:
    """Whether all purifiers of Table 2 were measured."""
    return all(select(results, stage) for _, stage in table_2_rows(results).values())


def table_2(results: Results) -> Table:
    """The paper's Table 2: what each teacher brings. The paper's numbers follow in brackets on CIFAR-10."""
    comparable, rows = comparable_attacks(results), []
    shown: list[Record] = []
    for name, (title, stage) in table_2_rows(results).items():
        theirs = {attack: f" ({value:.2f})" for attack, value in paper.TABLE_2.get(name, {}).items() if attack in comparable}
        ours = select(results, stage)
        rows.append([title, *(percent(one.accuracy) + theirs.get(attack, "") for attack, one in ours.items())])
        shown += ours.values()
    read = results.recipe["student"]["nt_teacher_input"]
    inputs = {"read": read, "other": _OTHER_INPUT[read]}
    caption = text("table_2", records=shown, beyond=own_losses(results), comparable=comparable, **inputs)
    header = ["purifier", *map(title_of, select(results))]
    return Table("Table 2. What each teacher brings (view blind)", caption, header, rows)


def table_2_over_seeds(runs: Sequence[Results]) -> Table:
    """Table 2 with the mean over several runs of one recipe that differ in their seeds, and the range."""
    attacks, rows = list(select(runs[0])), []
    for title, stage in table_2_rows(runs[0]).values():
        shares = [[select(results, stage)[attack].accuracy for results in runs] for attack in attacks]
        ranges = [f"{percent(mean(each))} ({percent(min(each))} to {percent(max(each))})" for each in shares]
        rows.append([title, *ranges])
    seeds = [results.seed for results in runs]
    caption = text("table_2_over_seeds", records=select(runs[0]).values(), seeds=seeds, claim=claim(runs))
    return Table(f"Table 2 over {len(runs)} seeds (view blind)", caption, ["purifier", *map(title_of, attacks)], rows)


def claim_applies(results: Results) -> bool:
    """Whether Table 2 tests the paper's claim: the students differ in their teachers alone, as in the paper."""
    student, nt = results.recipe["student"], results.recipe["teacher_nt"]
    guided = not own_losses(results) and any(student.get(key) for key in GUIDANCE)
    return bool(has_table_2(results) and student["start"] == STARTS[0] and nt["epochs"] and not guided)


def claim(runs: Sequence[Results]) -> str:
    """Whether the paper's claim holds, from the mean over all attacks of Table 2 of ``runs`` with different seeds.

    A difference counts if it exceeds, with every seed, the 95 % interval of a single number of the table.
    """
    rows = table_2_rows(runs[0])
    width = max(half_width(select(results, stage).values()) for results in runs for _, stage in rows.values())
    gains = []
    for (better, better_stage), (worse, worse_stage) in ((rows[one], rows[other]) for one, other in COMPARISONS):
        means = [[attacked_mean(select(one, stage)) for stage in (better_stage, worse_stage)] for one in runs]
        by_seed = [100 * (high - low) for high, low in means]
        gains.append((better, worse, mean(by_seed), min(by_seed), max(by_seed)))
    return text("claim", lowest=min(low for *_, low, _ in gains), seeds=len(runs), width=width, gains=gains)


def attacked_mean(records: dict[str, Record]) -> float:
    """Mean accuracy over the attacks, without clean images."""
    return mean(record.accuracy for attack, record in records.items() if attack != CLEAN)


def table_3(results: Results) -> Table:
    """The effect of each ingredient of the recipe: its variants, each without one of them."""
    variants = {title: found for title in results.recipe["variants"] if (found := select(results, VARIANT + title))}
    rows = [
        [title, *(percent(one.accuracy) for one in records.values()), *cells(records[CLEAN], "PSNR (dB)", "SSIM")]
        for title, records in variants.items()
    ]
    title, first = next(iter(variants.items()))
    shared = ", ".join(f"{key} {value}" for key, value in results.recipe["variants"][title].items())
    width = half_width(record for records in variants.values() for record in records.values())
    caption = text("table_3", records=first.values(), shared=shared, width=width)
    header = ["training", *map(title_of, first), "PSNR (dB)", "SSIM"]
    return Table("Table 3. What each ingredient brings (view blind)", caption, header, rows)


def training(results: Results) -> Table:
    """How long each stage took, and how much of the device it used."""
    rows = []
    for stage, history in filter(itemgetter(1), results.training.items()):  # without stages that had no epochs
        seconds = sum(record["seconds"] for record in history)
        rate = sum(record["seconds"] * record["images_per_second"] for record in history) / seconds
        flops = history[0].get("flops_per_image")  # older results have none
        used = [f"{flops / 1e9:.2f}", f"{rate * flops / 1e9:,.0f}"] if flops else ["-", "-"]
        share = f"{100 * rate * flops / results.peak_flops:.0f}" if flops and results.peak_flops else "-"
        rows.append([stage, str(len(history)), duration(seconds), f"{rate:,.0f}", *used, share])
    caption = text("training", peak=results.peak_flops, precision=results.recipe["precision"].replace("auto", "32-true"))
    header = ["stage", "epochs", "time", "images/s", "GFLOP per image", "GFLOP/s", "% of peak"]
    return Table("Training", caption, header, rows)


def threat_models(results: Results) -> Table:
    """The same purifier under every view that was measured, side by side."""
    records = [record for record in results.records if record.purifier == "student" and record.view != CLEAN]
    order = list(select(results))
    columns = ["attack", "view", "images", "purified", "95 % interval", "L2"]
    rows = [cells(one, *columns) for one in sorted(records, key=lambda r: (order.index(r.attack), r.view))]
    caption = text("threat_models", views={record.view for record in records})
    return Table("The same purifier under each threat model", caption, columns, rows)


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
    own = {title: records for title, records in purifiers.items() if records[CLEAN].classifier != ours[CLEAN].classifier}
    others = {title: records for title, records in purifiers.items() if title not in own}
    caption = text(
        "comparison_table",
        ours=ours,
        purifiers=[record for records in purifiers.values() for record in records.values()],
        fewer={title: found for title, found in others.items() if any(found[attack].n < ours[attack].n for attack in ours)},
        own=own,
        comparable=known,
    )
    header = ["purifier", *map(title_of, ours), "parameters", "MFLOP per image", "images/s"]
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
            limit = baseline.limit or recipe.data.limit
            images = f"{limit:,}" if limit else "all"
            trained = f"{images} images, {len(history) or baseline.training.epochs} epochs"
            time = duration(sum(record["seconds"] for record in history)) if history else "-"
            original = paper.ORIGINALS.get(baseline.kind, "-")
        elif isinstance(baseline, Untrained) and baseline.around:
            size += f" around {baseline.around}"
        rows.append([title, size, original, trained, time])
    caption = text("baselines_table", kinds={baseline.kind for baseline in compared.values()})
    return Table("What was compared", caption, ["purifier", "size", "in its paper", "trained on", "time"], rows)


def comparison(results: Results) -> str:
    """Which purifier is best in the mean over the attacks, in a sentence; empty where nothing was compared."""
    ours = select(results)
    # What is ours too is no rival: another use of the student, or a purifier that ships.
    settings = results.recipe["baselines"]
    own = [title for title, one in settings.items() if one.get("around") == "student" or one.get("source") in PURIFIERS]
    rivals = [found for title, found in baselines_of(results).items() if title not in own]
    if not rivals or len(ours) < 2:
        return ""
    best = max(rivals, key=attacked_mean)
    return text(
        "comparison",
        ours=attacked_mean(ours),
        best=best[CLEAN].purifier.removeprefix(BASELINE),
        theirs=attacked_mean(best),
        count=len(rivals),
        own_classifier=best[CLEAN].classifier if best[CLEAN].classifier != ours[CLEAN].classifier else None,
        width=math.hypot(half_width(ours.values()), half_width(best.values())),
    )


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
