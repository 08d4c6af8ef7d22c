"""Table 1 for all purifiers: ours, the baselines and the paper's columns, and what each baseline is."""

from collections.abc import Iterable
from statistics import mean

from purifiers.console import duration
from purifiers.evaluation.records import BASELINE, CLEAN, Cost, Record, Results
from purifiers.recipes import parse_recipe
from purifiers.recipes.baselines import Untrained, folder_of
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
    rows = []
    for title in purifiers_of(results):
        if title == OURS:
            continue
        baseline = recipe.baselines[title]
        size = _size(baseline.network.network, baseline.network.arguments)
        if isinstance(baseline, Untrained):
            rows.append([title, size + (f" around {baseline.around}" if baseline.around else ""), "-", "-", "-"])
            continue
        history = results.training.get(folder_of(title), [])
        counts = [count for count in (baseline.limit, everything) if count is not None]
        images = f"{min(counts):,}" if counts else "all"
        seconds = duration(sum(record["seconds"] for record in history)) if history else "-"
        original = paper.ORIGINALS.get(baseline.kind, "-")
        rows.append([title, size, original, f"{images} images, {baseline.training.epochs} epochs", seconds])
    caption = (
        "The size that was used, beside that of the baseline's own paper. NRP learns from features of the classifier to "
        "protect; SOAP comes with a classifier of its own, as its method trains it with the auxiliary task."
    )
    return Table("What was compared", caption, ["purifier", "size", "in its paper", "trained on", "time"], rows)


def comparison_sentence(results: Results) -> list[str]:
    """Who is best in the mean over attacks; empty where nothing was compared."""
    purifiers = purifiers_of(results)
    if not purifiers or len(purifiers[OURS]) < 2:
        return []
    means = {title: _mean(records) for title, records in purifiers.items()}
    best = max((title for title in means if title != OURS), key=means.__getitem__)
    gap = 100 * (means[OURS] - means[best])
    width = half_width(record for records in purifiers.values() for record in records.values())
    chance = ", which may be chance" if abs(gap) < width else ""
    verdict = "is better than" if gap > 0 else "is NOT better than"
    return [
        f"In the mean over attacks ours has {percent(means[OURS])} % and {verdict} the best of {len(means) - 1} baselines, "
        f"{best}, with {percent(means[best])} %{chance} (view blind)."
    ]


def _mean(records: dict[str, Record]) -> float:
    return mean(record.accuracy for attack, record in records.items() if attack != CLEAN)


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["-"] * 3
    flops = f"{cost.flops / 1e6:,.0f}" if cost.flops else "-"
    return [f"{cost.parameters:,}", flops, f"{cost.images_per_second:,.0f}"]


def _size(network: str, arguments: object) -> str:
    assert isinstance(arguments, dict)
    shown = []
    for key, value in arguments.items():
        if isinstance(value, dict):
            shown.append(f"{key} {value['network']}{value.get('depth', '')}")
        else:
            shown.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return f"{network}: {', '.join(shown)}" if shown else network


def _caption(results: Results, purifiers: dict[str, dict[str, Record]]) -> str:
    ours = purifiers[OURS]
    own = {title: records for title, records in purifiers.items() if records[CLEAN].classifier != ours[CLEAN].classifier}
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
        " Parameters, operations of an image (matrix products and convolutions, in MFLOP) and images/s on this machine are of "
        "the purifier, in the first row of the classifier; SOAP's are those of its whole optimisation. - stands for none, or "
        "for what is not reported."
    )
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
