"""Does the paper's claim hold here: two teachers are better than one, and one is better than none?"""

from collections.abc import Sequence
from statistics import mean

from purifiers.evaluation.records import CLEAN, Results
from purifiers.recipes.schema import STARTS
from purifiers.reports.tables import TABLE_2_ROWS, Table, half_width, images_of, percent, row_title, select

COMPARISONS = (
    ("student", "student_at"),
    ("student", "student_nt"),
    ("student_at", "teacher_at"),
    ("student_nt", "teacher_at"),
)
"""Better and worse purifier of Table 2, by the paper's account."""


def is_the_papers(results: Results) -> bool:
    """Whether the students differ in their teachers alone, as in the paper: only then does Table 2 test its claim."""
    student, nt = results.recipe["student"], results.recipe["teacher_nt"]
    guided = student["classification_weight"] or student["logits_weight"]
    return bool(student["start"] == STARTS[0] and nt["epochs"] and not guided)


def verdict(runs: Sequence[Results]) -> str:
    """The answer in plain words, from the mean over all attacks of each run's Table 2.

    A difference counts if it exceeds, with every seed, the 95 % interval of a single number of the table.

    Args:
        runs: of one recipe with different seeds, each with all rows of Table 2.
    """
    width = max(half_width(select(results, stage).values()) for results in runs for stage in TABLE_2_ROWS)
    parts, every = [], []
    for better, worse in COMPARISONS:
        gains = [_gain(results, better, worse) for results in runs]
        every += gains
        spread = f" (by seed {min(gains):+.2f} to {max(gains):+.2f})" if len(gains) > 1 else ""
        parts.append(f"{TABLE_2_ROWS[better]} against {TABLE_2_ROWS[worse]} {mean(gains):+.2f}{spread}")
    if min(every) > width:
        said = "holds here"
    elif min(every) < -width:
        said = "does not hold here"
    else:
        said = "is not decided here"
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    return (
        f"The paper's claim, that two teachers beat one and one beats none, {said} ({seeds}, view blind). In the mean over "
        f"attacks, in points, where less than {width:.1f} may be chance: {'; '.join(parts)}."
    )


def table_2_over_seeds(runs: Sequence[Results]) -> Table:
    """Table 2 with the mean over several runs of one recipe that differ in their seeds, and the range."""
    attacks = list(select(runs[0]))
    rows = []
    for stage in TABLE_2_ROWS:
        cells = []
        for attack in attacks:
            shares = [select(results, stage)[attack].accuracy for results in runs]
            cells.append(f"{percent(mean(shares))} ({percent(min(shares))} to {percent(max(shares))})")
        rows.append([row_title(runs[0], stage), *cells])
    seeds = ", ".join(str(results.seed) for results in runs)
    caption = (
        f"Accuracy in % after purification on {images_of(select(runs[0]).values())}, view blind: mean over the seeds {seeds}, "
        "in brackets the lowest and the highest. Each seed draws its own training, and where not all are taken its own images. "
        + verdict(runs)
    )
    names = ["clean" if attack == CLEAN else attack for attack in attacks]
    return Table(f"Table 2 over {len(runs)} seeds (view blind)", caption, ["purifier", *names], rows)


def _gain(results: Results, better: str, worse: str) -> float:
    """How much better, in points, in the mean over attacks."""
    first, second = select(results, better), select(results, worse)
    return mean(100 * (first[attack].accuracy - second[attack].accuracy) for attack in first if attack != CLEAN)
