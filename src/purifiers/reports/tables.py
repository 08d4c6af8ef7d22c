"""The tables of one purifier: 1 in detail, 2 and 3, threat models and training, from results alone."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from purifiers.attacks import show_fraction
from purifiers.console import duration
from purifiers.evaluation.records import BASELINE, CLEAN, VARIANT, Record, Results
from purifiers.reports import paper

TABLE_2_ROWS = {
    "teacher_at": "AT, no distillation",
    "student_at": "student of AT",
    "student_nt": "student of NT",
    "student": "student of AT and NT",
    "student_other": "same, NT sees",
}
"""The purifiers of Table 2 in the paper's order, and a last one with the other reading of equation 5."""
_THE_PAPERS = (
    f"The paper's numbers are on all 10,000 test images, with a ResNet-56 of {paper.CLEAN_UNDEFENDED} % on clean images "
    "without a purifier."
)
ATTACKERS = {
    "blind": "differentiates the classifier alone",
    "full": "knows the purifier too and differentiates through both",
    "bpda": "knows the purifier too and takes the identity's gradient for its own",
    "eot": "knows the purifier too and averages over its random draws",
    "query": "can only ask what purifier and classifier answer",
}
"""What the attacker of each view does, after ``who``."""
_OTHER_INPUT = {"adversarial": "clean", "clean": "adversarial"}


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        title: above it.
        caption: below it: what the numbers are.
        header: names of the columns.
        rows: as wide as the header.
        details: names of columns that a terminal has no room for.
    """

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]
    details: tuple[str, ...] = ()

    def compact(self) -> "Table":
        """The same table without its details."""
        kept = [i for i, name in enumerate(self.header) if name not in self.details]
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, header=[self.header[i] for i in kept], rows=rows, details=())

    def markdown(self) -> str:
        """The table in GitHub's Markdown, numbers to the right."""
        rule = ["---"] + ["---:"] * (len(self.header) - 1)
        lines = [self.header, rule, *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"### {self.title}\n\n{body}\n\n{self.caption}\n"


def percent(share: float) -> str:
    """A share in [0,1] as a percentage with two decimals, like the paper's."""
    return f"{100 * share:.2f}"


def select(results: Results, purifier: str = "student", view: str = "blind") -> dict[str, Record]:
    """A purifier's records under one view by attack, the clean row first."""
    chosen = [r for r in results.records if r.purifier == purifier and r.view in (CLEAN, view)]
    return {record.attack: record for record in chosen}


def through_purifier(results: Results) -> list[Record]:
    """The records of the student under every view but ``blind``: of attackers whom the purifier does not take by surprise."""
    return [r for r in results.records if r.purifier == "student" and r.view not in (CLEAN, "blind")]


def weakest(records: Iterable[Record]) -> Record:
    """The record with the lowest accuracy."""
    return min(records, key=lambda record: record.accuracy)


def table_1(results: Results) -> Table:
    """The paper's Table 1: this purifier against every attack of an attacker who does not know of it."""
    records = select(results)
    comparable = comparable_attacks(results)
    compared = paper.TABLE_1 if comparable else {}
    header = ["attack", "epsilon", "images", "undefended", "purified", "95 % interval", "agreement", "PSNR (dB)", "SSIM"]
    rows = []
    for attack, record in records.items():
        ours = [
            "clean images" if attack == CLEAN else attack,
            epsilon_of(record),
            f"{record.n:,}",
            percent(record.accuracy_undefended),
            percent(record.accuracy),
            interval(record),
            percent(record.agreement),
            f"{record.psnr:.1f}",
            "-" if record.ssim is None else f"{record.ssim:.3f}",
        ]
        theirs = [f"{column[attack]:.2f}" if attack in comparable else "-" for column in compared.values()]
        rows.append(ours + theirs)
    caption = (
        f"Accuracy in % on {images_of(records.values())}. The attacker knows the classifier but not the purifier (view "
        "blind, the paper's gray-box). Agreement: the class after purification is the classifier's class for the "
        "original image. PSNR and SSIM: purified against original image."
    )
    if compared:
        caption += f" {_THE_PAPERS} It does not report clean accuracy after purification."
    details = ("images", "95 % interval", "PSNR (dB)", "SSIM")
    compared_with = any(record.purifier.startswith(BASELINE) for record in results.records)
    title = "Table 1 in detail. Ours" if compared_with else "Table 1. Purification"
    return Table(f"{title} against each attack (view blind)", caption, header + list(compared), rows, details)


def table_2(results: Results) -> Table:
    """The paper's Table 2: what each teacher brings. The paper's numbers follow in brackets on CIFAR-10."""
    attacks = list(select(results))
    rows = []
    shown = [record for stage in TABLE_2_ROWS for record in select(results, stage).values()]
    read = results.recipe["student"]["nt_teacher_input"]
    comparable = comparable_attacks(results)
    for stage in TABLE_2_ROWS:
        records = select(results, stage)
        theirs = {attack: f" ({value:.2f})" for attack, value in paper.TABLE_2.get(stage, {}).items() if attack in comparable}
        rows.append(
            [row_title(results, stage), *(percent(records[attack].accuracy) + theirs.get(attack, "") for attack in attacks)]
        )
    names = ["clean" if attack == CLEAN else attack for attack in attacks]
    caption = (
        f"Accuracy in % after purification on {images_of(shown)}, view blind. Students start from the "
        f"same weights and see the same batches. Teacher NT sees {read} images, in the last row {_OTHER_INPUT[read]} "
        "ones: equation 5 of the paper has adversarial ones, its text has pure ones."
    )
    caption += (
        f" One training seed; a 95 % interval reaches up to {half_width(shown):.1f} points to each side, so that smaller "
        "differences between rows say nothing."
    )
    if comparable:
        caption += f" In brackets: the paper's Table 2. {_THE_PAPERS}"
    return Table("Table 2. What each teacher brings (view blind)", caption, ["purifier", *names], rows)


def row_title(results: Results, stage: str) -> str:
    """What Table 2 calls a stage; the last row's name ends in what its teacher NT sees."""
    other = _OTHER_INPUT[results.recipe["student"]["nt_teacher_input"]]
    return TABLE_2_ROWS[stage] + (f" {other}" if stage == "student_other" else "")


def table_3(results: Results) -> Table:
    """What each ingredient of the recipe brings: its variants, each with one thing left out."""
    titles = [title for title in results.recipe["variants"] if select(results, VARIANT + title)]
    rows_of = {title: select(results, VARIANT + title) for title in titles}
    attacks = list(rows_of[titles[0]])
    rows = []
    for title, records in rows_of.items():
        clean = records[CLEAN]
        numbers = [percent(records[attack].accuracy) for attack in attacks]
        rows.append([title, *numbers, f"{clean.psnr:.1f}", "-" if clean.ssim is None else f"{clean.ssim:.3f}"])
    names = ["clean" if attack == CLEAN else attack for attack in attacks]
    shared = results.recipe["variants"][titles[0]]
    size = ", ".join(f"{key} {value}" for key, value in shared.items()) or "as the recipe's own training"
    width = half_width(record for records in rows_of.values() for record in records.values())
    caption = (
        f"Accuracy in % after purification on the first {images_of(rows_of[titles[0]].values())}, view blind; PSNR and SSIM "
        f"of clean images. All rows are trained alike ({size}), and each but the first leaves one thing out. One seed: "
        f"a 95 % interval reaches up to {width:.1f} points to each side."
    )
    return Table("Table 3. What each ingredient brings (view blind)", caption, ["training", *names, "PSNR (dB)", "SSIM"], rows)


def training(results: Results) -> Table:
    """How long each stage took, and how much of the device it used."""
    rows = []
    for stage, history in results.training.items():
        if not history:  # a teacher NT that starts as what it is to be
            continue
        seconds = sum(record["seconds"] for record in history)
        images = sum(record["seconds"] * record["images_per_second"] for record in history)
        flops = history[0].get("flops_per_image", 0.0)
        rate = images / seconds
        rows.append(
            [
                stage,
                str(len(history)),
                duration(seconds),
                f"{rate:,.0f}",
                *(
                    # Trained by a version that did not count.
                    ("-", "-", "-")
                    if not flops
                    else (
                        f"{flops / 1e9:.2f}",
                        f"{rate * flops / 1e9:,.0f}",
                        "-" if results.peak_flops is None else f"{100 * rate * flops / results.peak_flops:.0f}",
                    )
                ),
            ]
        )
    caption = "GFLOP an image: matrix products and convolutions, forward and backward, of all networks in the step. " + (
        "The training had another kind of device, or another number of threads, than the evaluation, whose peak is not its own."
        if results.peak_flops is None
        else f"Peak: {results.peak_flops / 1e9:,.0f} GFLOP/s in a large matrix product of the training's precision "
        f"({results.recipe['precision']}), measured when the run was evaluated."
    )
    header = ["stage", "epochs", "time", "images/s", "GFLOP an image", "GFLOP/s", "% of peak"]
    return Table("Training", caption, header, rows)


def threat_models(results: Results) -> Table:
    """The same purifier under every view that was measured, side by side."""
    records = [record for record in results.records if record.purifier == "student" and record.view != CLEAN]
    order = list(results.recipe["evaluation"]["attacks"])
    rows = [
        [
            record.attack,
            record.view,
            epsilon_of(record),
            f"{record.n:,}",
            percent(record.accuracy),
            interval(record),
            f"{record.l2:.2f}",
        ]
        for record in sorted(records, key=lambda r: (order.index(r.attack), r.view))
    ]
    views = " ".join(f"{view}: the attacker {does}." for view, does in ATTACKERS.items() if view in {r.view for r in records})
    caption = f"Accuracy in % after purification. {views} L2: median length of the perturbation."
    return Table(
        "The same purifier under each threat model",
        caption,
        ["attack", "view", "epsilon", "images", "accuracy", "95 % interval", "L2"],
        rows,
    )


def interval(record: Record) -> str:
    """The 95 % interval of the accuracy, in percent."""
    return f"{percent(record.ci95[0])} to {percent(record.ci95[1])}"


def epsilon_of(record: Record) -> str:
    """The attack's epsilon, with its norm where that is not L-inf."""
    return show_fraction(record.epsilon) + (" (L2)" if record.norm == "l2" and record.epsilon is not None else "")


def half_width(records: Iterable[Record]) -> float:
    """The widest 95 % interval's longer side, in points."""
    return 100 * max(max(record.accuracy - record.ci95[0], record.ci95[1] - record.accuracy) for record in records)


def images_of(records: Iterable[Record]) -> str:
    """What the records were measured on, in words."""
    listed = list(records)
    first, counts = listed[0], sorted({record.n for record in listed})
    fewer = ""
    if len(counts) > 1:
        fewest = f"{counts[0]:,}" if len(counts) == 2 else f"{counts[0]:,} to {counts[-2]:,}"
        named = [record.attack for record in listed if record.n < counts[-1]]
        fewer = f" ({', '.join(dict.fromkeys(named))}: {fewest} of them, drawn at random)"
    return f"{counts[-1]:,} test images of {first.dataset}{fewer}, classifier {first.classifier}"


def comparable_attacks(results: Results) -> set[str]:
    """The attacks that are the paper's, by their parameters and not by name alone, on the paper's data set."""
    if results.recipe["data"]["name"] != "cifar10":
        return set()
    attacks = results.recipe["evaluation"]["attacks"]
    return {name for name, attack in paper.ATTACKS.items() if attacks.get(name) == attack.model_dump(mode="json")}
