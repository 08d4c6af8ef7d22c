"""Does the paper's claim hold here: two teachers are better than one, and one is better than none?"""

from collections.abc import Sequence
from statistics import mean

from purifiers.evaluation.records import CLEAN, Results
from purifiers.reports.tables import TABLE_2_ROWS, Table, percent, select

COMPARISONS = (
    ("student", "student_at"),
    ("student", "student_nt"),
    ("student_at", "teacher_at"),
    ("student_nt", "teacher_at"),
)
"""Better and worse purifier of Table 2, by the paper's account."""


def verdict(runs: Sequence[Results]) -> str:
    """The answer in plain words, from the mean over all attacks of each run's Table 2.

    Args:
        runs: of one recipe with different seeds, each with all rows of Table 2.
    """
    parts, holds = [], True
    for better, worse in COMPARISONS:
        gains = [_gain(results, better, worse) for results in runs]
        holds = holds and min(gains) > 0
        spread = f" (by seed {min(gains):+.2f} to {max(gains):+.2f})" if len(gains) > 1 else ""
        parts.append(f"{TABLE_2_ROWS[better]} against {TABLE_2_ROWS[worse]} {mean(gains):+.2f}{spread}")
    seeds = "with every seed" if len(runs) > 1 else "with one seed"
    said = f"holds {seeds}" if holds else "does not hold" + ("" if len(runs) == 1 else " with every seed")
    return (
        f"The paper's claim, that two teachers beat one and one beats none, {said}. In the mean over attacks, in points: "
        + "; ".join(parts)
        + "."
    )


def table_2_over_seeds(runs: Sequence[Results]) -> Table:
    """Table 2 with the mean over several runs of one recipe that differ in their seeds, and the range."""
    attacks = list(select(runs[0]))
    rows = []
    for stage, title in TABLE_2_ROWS.items():
        cells = []
        for attack in attacks:
            shares = [select(results, stage)[attack].accuracy for results in runs]
            cells.append(f"{percent(mean(shares))} ({percent(min(shares))} to {percent(max(shares))})")
        rows.append([title, *cells])
    seeds = ", ".join(str(results.seed) for results in runs)
    caption = (
        f"Accuracy in % after purification, view blind: mean over the seeds {seeds}, in brackets the lowest and the highest. "
        + verdict(runs)
    )
    names = ["clean" if attack == CLEAN else attack for attack in attacks]
    return Table(f"Table 2 over {len(runs)} seeds", caption, ["purifier", *names], rows)


def _gain(results: Results, better: str, worse: str) -> float:
    """How much better, in points, in the mean over attacks."""
    first, second = select(results, better), select(results, worse)
    return mean(100 * (first[attack].accuracy - second[attack].accuracy) for attack in first if attack != CLEAN)
