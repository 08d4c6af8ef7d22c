import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from purifiers.attacks import VIEWS
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.examples import Examples, Row
from purifiers.evaluation.records import AttackWarning, Record, Results
from purifiers.recipes.load import load_recipe
from purifiers.reports import paper
from purifiers.reports.cards import classifier_card, model_card
from purifiers.reports.claim import verdict
from purifiers.reports.figures import accuracy_figure
from purifiers.reports.run_report import all_tables, headline, write_card, write_report, write_seeds
from purifiers.reports.tables import ATTACKERS, TABLE_2_ROWS, table_1, table_2, threat_models, training
from purifiers.reports.worth import worth

ATTACKS = {"none": None, "PGD8": 8 / 255, "CW": None}


def record(purifier: str, view: str, attack: str, accuracy: float, dataset: str) -> Record:
    return Record(
        dataset=dataset, classifier="resnet56", purifier=purifier, view="none" if attack == "none" else view, attack=attack,
        norm=None if attack == "none" else "linf", epsilon=ATTACKS[attack], n=1000, accuracy_undefended=0.05,
        accuracy=accuracy, agreement=0.5, ci95=(accuracy - 0.01, accuracy + 0.01), psnr=30.0, ssim=None, l2=1.2, seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def make_results() -> Callable[..., Results]:
    def make(dataset: str = "cifar10", stages: tuple[str, ...] = tuple(TABLE_2_ROWS), full: bool = True) -> Results:
        records = [
            record(stage, "blind", attack, 0.6 + 0.01 * i + 0.1 * j, dataset)
            for i, stage in enumerate(stages)
            for j, attack in enumerate(ATTACKS)
        ]
        if full:
            records.append(record("student", "full", "PGD8", 0.0123, dataset))
        return Results(
            recipe=load_recipe("paper").model_dump(mode="json"), seed=0, versions={"torch": "2"},
            hardware={"name": "a <fast> machine", "threads": 2, "platform": "x", "device": "cpu"},
            seconds={"training": 3725.0, "evaluation": 65.0},
            training={"student": [{"epoch": e, "loss": 1.0 / e, "mse": 0.5 / e, "learning_rate": 0.1, "images_per_second": 1, "seconds": 1} for e in (1, 2, 3)]},
            parameters=1_290_675, peak_flops=2e12, records=records, warnings=[AttackWarning(view="blind", attack="AA", message="it seems <odd>")],
        )  # fmt: skip

    return make


@pytest.fixture
def examples() -> Examples:
    def row(correct: bool) -> Row:
        return Row(torch.rand(4, 3, 16, 16), ["cat", "dog", "a_b", "$x$"], [correct] * 4)

    return Examples("PGD8", True, row(True), row(False), row(True))


def test_table_1_has_the_papers_columns_on_cifar10_alone(make_results: Callable[..., Results]) -> None:
    table = table_1(make_results())
    pgd = dict(zip(table.header, table.rows[1], strict=True))
    assert (pgd["attack"], pgd["epsilon"], pgd["purified"]) == ("PGD8", "8/255", "73.00")
    assert (pgd["paper"], pgd["paper's NRP"], pgd["paper's SOAP"]) == ("40.20", "35.07", "39.14")
    assert dict(zip(table.header, table.rows[0], strict=True))["paper"] == "-"
    assert "89.46" in table.caption
    results = make_results("digits")
    results.recipe["data"]["name"] = "digits"
    other = table_1(results)
    assert "paper" not in other.header
    assert "89.46" not in other.caption


def test_the_papers_numbers_stand_beside_the_papers_attacks_alone(make_results: Callable[..., Results]) -> None:
    """Not beside another epsilon under the same name, nor a folder of images that happens to be called cifar10."""
    results = make_results()
    results.recipe["evaluation"]["attacks"]["PGD8"]["epsilon"] = "4/255"
    table = table_1(results)
    pgd, cw = (dict(zip(table.header, row, strict=True)) for row in table.rows[1:])
    assert (pgd["paper"], cw["paper"]) == ("-", "56.87")
    assert table_2(results).rows[1][2] == "71.00"
    results.recipe["data"]["name"] = "folder"
    assert "paper" not in table_1(results).header


def test_table_2_has_the_papers_numbers_in_brackets(make_results: Callable[..., Results]) -> None:
    rows = {row[0]: row for row in table_2(make_results()).rows}
    assert list(rows) == [
        "AT, no distillation",
        "student of AT",
        "student of NT",
        "student of AT and NT",
        "same, NT sees clean",
    ]
    assert rows["student of AT"][2] == "71.00 (35.46)"
    assert rows["student of AT"][1] == "61.00"
    assert rows["same, NT sees clean"][2] == "74.00"


def test_the_papers_numbers_are_the_papers(pytestconfig: pytest.Config) -> None:
    """Compared with the paper's text where it lies beside the project."""
    text = Path(pytestconfig.rootpath).parent / "shared" / "paper" / "distillation-based-purification.md"
    if not text.is_file():
        pytest.skip(f"the paper's text is not at {text}")
    content = text.read_text()
    for i, attack in enumerate(paper.ATTACKS):
        cells = [f"{paper.TABLE_1[column][attack]:.2f}" for column in ("paper", "paper's NRP", "paper's SOAP")]
        assert re.search(rf"^{attack}\s+" + r"\s+".join(cells), content, re.M)
        column = [f"{paper.TABLE_2[row][attack]:.2f}" for row in ("teacher_at", "student_at", "student_nt", "student")]
        lines = [line for line in content.splitlines() if line.startswith(("\\checkmark", "-\t\\checkmark"))]
        assert [line.split("\t")[3 + i] for line in lines] == column


def test_table_2_needs_all_its_rows(make_results: Callable[..., Results]) -> None:
    assert [table.title[:7] for table in all_tables(make_results())] == ["Table 1", "Table 2", "The sam", "Trainin"]
    assert [table.title[:7] for table in all_tables(make_results(stages=("student",)))] == ["Table 1", "The sam", "Trainin"]


def test_the_training_table_says_how_much_of_the_device_was_used(make_results: Callable[..., Results]) -> None:
    epochs = [{"epoch": e, "images_per_second": 500.0 / e, "flops_per_image": 8e8, "seconds": 30.0 * e} for e in (1, 2)]
    results = make_results().model_copy(update={"training": {"student": epochs}})
    # 30,000 images in 90 s, 0.8 GFLOP each: 266.7 GFLOP/s of 2,000.
    assert training(results).rows == [["student", "2", "1 min 30 s", "333", "0.80", "267", "13"]]
    assert "2,000 GFLOP/s" in training(results).caption


def test_threat_models_stand_side_by_side(make_results: Callable[..., Results]) -> None:
    rows = threat_models(make_results()).rows
    assert [row[:2] for row in rows] == [["PGD8", "blind"], ["PGD8", "full"], ["CW", "blind"]]
    assert rows[1][3:5] == ["1,000", "1.23"]


def test_the_headline_never_hides_the_informed_attacker(make_results: Callable[..., Results]) -> None:
    assert "at most 1.23 %" in headline(make_results())[2]
    assert "nothing here speaks of an attacker who knows of it" in headline(make_results(full=False))[2]


def test_every_view_has_its_words() -> None:
    assert ATTACKERS.keys() == VIEWS.keys()


@pytest.mark.parametrize(
    ("view", "does"),
    [
        ("full", "knows the purifier too and differentiates through both"),
        ("bpda", "takes the identity's gradient"),
        ("eot", "averages over its random draws"),
        ("query", "can only ask"),
    ],
)
def test_the_lowest_of_all_views_is_told_everywhere(
    make_results: Callable[..., Results], tmp_path: Path, view: str, does: str
) -> None:
    results = make_results(full=False)
    results.records.append(record("student", view, "PGD8", 0.0456, "cifar10"))
    said = headline(results)[2]
    assert does in said and "at most 4.56 % (PGD8, 1,000 images, 95 % interval up to 5.56 %): a" in said
    assert f"{view}: the attacker " in threat_models(results).caption and does in threat_models(results).caption
    card = model_card("mine", [results])
    assert f"| PGD8 | {view} | 8/255 | 1,000 | - | 4.56 |" in card and f"(view {view}" in card
    (tmp_path / "README.md").write_text(card)
    assert "4.56 % under the best measured attack by one who knows the purifier too (PGD8" in worth(tmp_path)
    results.records.append(record("student", "full" if view != "full" else "bpda", "CW", 0.5, "cifar10"))
    assert "4.56 % (PGD8, 1,000 images, 95 % interval up to 5.56 %, the lowest of the views " in headline(results)[2]
    bars = [bar.get_height() for bar in accuracy_figure(results).axes[0].containers[2]]
    assert bars == pytest.approx([4.56, 50.0])


def test_the_headline_says_what_makes_numbers_worthless(make_results: Callable[..., Results]) -> None:
    """An attack that changes nothing, a classifier that guesses, a purifier that ruins clean images."""
    text = " ".join(headline(make_results()))  # the fixture's classifier is right on 5 % of everything
    assert "Not tested: PGD8, CW had no effect" in text
    assert "right on less than every second clean image" in text
    assert "The purifier costs" not in text
    results = make_results()
    clean = {"accuracy_undefended": 0.95}
    records = [r.model_copy(update=clean) if r.attack == "none" else r for r in results.records]
    text = " ".join(headline(results.model_copy(update={"records": records})))
    assert "Not tested" not in text
    assert "less than every second" not in text
    assert "The purifier costs 32.00 points" in text


def test_the_picture_says_when_the_attack_changed_nothing(
    make_results: Callable[..., Results], examples: Examples, tmp_path: Path
) -> None:
    write_report(make_results(), examples, tmp_path / "a")
    write_report(make_results(), replace(examples, changed=False), tmp_path / "b")
    assert "that the attack changes the class of" in (tmp_path / "a" / "report.html").read_text()
    assert "the attack changed the class of none" in (tmp_path / "b" / "report.html").read_text()


def test_table_2_bounds_its_intervals_by_their_longer_side(make_results: Callable[..., Results]) -> None:
    results = make_results()
    records = [r.model_copy(update={"ci95": (r.accuracy - 0.002, r.accuracy + 0.0731)}) for r in results.records]
    assert "up to 7.3 points" in table_2(results.model_copy(update={"records": records})).caption


def test_the_report_is_complete_and_self_contained(
    make_results: Callable[..., Results], examples: Examples, tmp_path: Path
) -> None:
    page = write_report(make_results(), examples, tmp_path).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count("data:image/png;base64") == 1
    assert page.count("data:image/svg+xml;base64") == 2
    for text in ("Table 1.", "Table 2.", "73.00", "it seems &lt;odd&gt;", "a &lt;fast&gt; machine", "1 h 02 min", "1,290,675"):
        assert text in page
    markdown = (tmp_path / "report.md").read_text()
    for link in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (tmp_path / link).stat().st_size > 1000
    assert markdown.count("![") == 3
    assert "| PGD8 | 8/255 |" in markdown
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["accuracy.svg", "examples.png", "training.svg"]


def test_equal_results_give_equal_files(make_results: Callable[..., Results], examples: Examples, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name / "run"
        write_report(make_results(), examples, folder)
        contents.append({path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]


def test_the_card_has_every_measurement_and_the_limits(make_results: Callable[..., Results], tmp_path: Path) -> None:
    results = make_results()
    elsewhere = [r.model_copy(update={"classifier": "another", "accuracy": 0.4321}) for r in results.records]
    card = model_card("mine", [results, results.model_copy(update={"records": elsewhere})])
    assert card.startswith("---\nlicense: apache-2.0")
    assert 'from_pretrained("mine")' in card
    assert "In front of resnet56" in card
    assert "In front of another" in card
    assert "| PGD8 | blind | 8/255 | 1,000 | 5.00 | 73.00 | 72.00 to 74.00 | 30.0 | - |" in card
    assert "| PGD8 | full | 8/255 | 1,000 | - | 1.23 | 0.23 to 2.23 | 30.0 | - |" in card
    assert "43.21" in card
    assert "recipe `paper`, seed 0" in card
    assert "2 threads (no GPU)" in card
    assert "student: 3 epochs in 3.0 s" in card
    assert "against resnet56, with PGD." in card
    (tmp_path / "README.md").write_text(card)
    assert "73.00 % under the best measured attack by one who knows the classifier only (PGD8, epsilon 8/255" in worth(tmp_path)


def test_the_card_tells_the_worst_cases_of_an_audit_of_that_run_alone(
    make_results: Callable[..., Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, record = make_results(), make_results().records[0]
    folder = tmp_path / "run"
    worst = {"purifier": "run", "view": "worst", "attack": "all attacks", "epsilon": 8 / 255, "n": 200, "accuracy": 0.007}
    groups = ("all attacks", "white-box")
    records = [
        record.model_copy(update={**worst, "norm": norm, "attack": group}) for norm in ("linf", "l2") for group in groups
    ]
    audit = Audit(settings={}, seed=0, versions={}, hardware={}, seconds=1, random=[], records=records, checks={}, warnings=[])
    for classifier, there in ((record.classifier, True), ("another", False)):
        own = [one.model_copy(update={"classifier": classifier}) for one in records]
        audit.model_copy(update={"records": own}).write(folder)
        write_card(folder, results)
        card = (folder / "card.md").read_text()
        assert ("| worst of the audit | full | 8/255 | 200 | - | 0.70 |" in card) == there
        assert ("| worst of the audit, L2 | full | 8/255 (L2) | 200 |" in card) == there
        assert ("0.70 % under the best measured attack by one who knows the purifier too" in worth(folder)) == there
    # A report that is written elsewhere is of the same run, and has its audit.
    audit.write(folder)
    (tmp_path / "else").mkdir()
    write_card(tmp_path / "else", results, folder)
    card = (tmp_path / "else" / "card.md").read_text()
    assert card.startswith("---") and "\n# run\n" in card and "path/to/run" in card
    assert "| worst of the audit | full | 8/255 | 200 | - | 0.70 |" in card
    with monkeypatch.context() as there:
        there.chdir(folder)
        write_card(Path(), results)
    assert (folder / "card.md").read_text() == card
    # Of one who does not know the purifier it would say nothing; and one that cannot be read is not told.
    audit.model_copy(update={"records": [one for one in records if one.attack == "all attacks"]}).write(folder)
    write_card(folder, results)
    assert "worst of the audit" not in (folder / "card.md").read_text()
    (folder / "audit.json").write_text("{")
    write_card(folder, results)
    assert "worst of the audit" not in (folder / "card.md").read_text()


def test_a_training_on_another_device_has_no_share_of_this_ones_peak(make_results: Callable[..., Results]) -> None:
    results = make_results()
    counted = {"student": [{**epoch, "flops_per_image": 1e9} for epoch in results.training["student"]]}
    here = training(results.model_copy(update={"training": counted}))
    away = training(results.model_copy(update={"training": counted, "peak_flops": None}))
    assert [here.rows[0][-1], away.rows[0][-1]] == ["0", "-"]
    assert "2,000 GFLOP/s in a large" in here.caption and "another kind of device" in away.caption


def test_a_card_of_a_purifier_that_went_on_from_another_names_that(make_results: Callable[..., Results]) -> None:
    first, start = make_results(), ["student.start=runs/first", "teacher_at.start=runs/first", "teacher_at.epochs=0"]
    after = first.model_copy(
        update={
            "recipe": load_recipe("strong", start).model_dump(mode="json"),
            "training": {"teacher_nt": [], "teacher_at": [], "student": first.training["student"]},
        }
    )
    card = model_card("mine", [after])
    assert "- teacher_nt: the untrained residual network, which is the identity" in card
    assert "- teacher_at: that of runs/first" in card
    assert "- student: 3 epochs in 3.0 s, from runs/first" in card
    assert "- student: 3 epochs in 3.0 s\n" in model_card("mine", [first])
    after.recipe["student"]["start"] = "/home/me/runs/second"
    placed = model_card("mine", [after])
    assert "- student: 3 epochs in 3.0 s, from second" in placed and "/home/me" not in placed
    assert "a student that goes on from an earlier one" in card and "starts from teacher AT" not in card


@pytest.mark.parametrize(
    ("recipe", "overrides", "said", "unsaid"),
    [
        ("paper", [], "**not** the purifier", "anew"),
        ("robust-cpu", [], "with pgd of 1 steps through both networks", "**not** the purifier"),
        (
            "robust-cpu",
            ["student.attack={kind: fgsm, epsilon: 8/255}"],
            "with fgsm through both networks",
            "**not** the purifier",
        ),
        ("robust-cpu", [], "It draws the image anew", "Gaussian noise, for"),
        ("robust-cpu", [], "gives a pattern that its own classifier reads", "gives a clean one"),
        ("strong-cpu", [], "gives a clean one", "a pattern"),
        ("smooth-cpu", [], "with Gaussian noise of 0.25", "**not** the purifier"),
        ("smooth-cpu", [], "met no attack in training", "anew"),
    ],
)
def test_a_card_tells_the_limits_of_its_training(
    make_results: Callable[..., Results], recipe: str, overrides: list[str], said: str, unsaid: str
) -> None:
    content = load_recipe(recipe, overrides).model_dump(mode="json")
    card = model_card("mine", [make_results().model_copy(update={"recipe": content})])
    assert said in card and unsaid not in card


def test_a_classifiers_card_tells_how_it_was_trained_and_for_what() -> None:
    recipe = load_recipe("strong-cpu", ["classifier.training.epochs=3"]).model_dump(mode="json")
    history = [{"seconds": 60.0}] * 3
    card = classifier_card("mine", "classifier", recipe, history, 0.9312, 10_000, "abc")
    assert "A CIFAR ResNet-56 that the purifier of the recipe `strong-cpu` was trained against:" in card
    assert "accuracy on 10,000 cifar10 test images: 93.12 %" in card
    assert "classifier of the recipe `strong-cpu`, seed 0, bf16-mixed: 3 epochs in 3 min 00 s; batch_size 128," in card
    assert 'locate("mine")' in card and "measured at commit abc" in card
    unseen = classifier_card("mine", "companion_2", recipe, history, 0.5, 10, "abc", unseen=True)
    assert "A CIFAR ResNet-32 that no purifier of this library was trained against," in unseen
    assert "learning_rate 0.2" in unseen


def shifted(results: Results, seed: int, by: dict[str, float]) -> Results:
    def moved(r: Record) -> Record:
        accuracy = r.accuracy + by.get(r.purifier, 0.0)
        return r.model_copy(update={"accuracy": accuracy, "ci95": (accuracy - 0.01, accuracy + 0.01)})

    records = [moved(r) for r in results.records]
    return results.model_copy(update={"records": records, "seed": seed})


def test_the_verdict_on_the_papers_claim(make_results: Callable[..., Results]) -> None:
    # The rows of make_results rise by one point each: AT, student of AT, student of NT, student of both; intervals reach
    # one point to each side.
    plain = make_results()
    said = verdict([plain])
    assert "is not decided here (one seed, view blind)" in said
    assert "where less than 1.0 may be chance: student of AT and NT against student of AT +2.00;" in said
    assert "student of NT against AT, no distillation +2.00." in said
    clear = shifted(plain, 1, {"student_at": 0.01, "student_nt": 0.01, "student": 0.02})
    assert "holds here (one seed" in verdict([clear])
    assert "does not hold here" in verdict([shifted(plain, 1, {"student": -0.04})])
    both = verdict([clear, shifted(plain, 1, {"student": -0.015})])
    assert "is not decided here (2 seeds" in both
    assert "against student of NT +0.75 (by seed -0.50 to +2.00)" in both
    assert verdict([plain]) in headline(plain)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [("student", "start", "teacher_at"), ("student", "classification_weight", 1.0), ("teacher_nt", "epochs", 0)],
)
def test_there_is_no_verdict_on_another_method(
    make_results: Callable[..., Results], group: str, key: str, value: object
) -> None:
    results = make_results()
    recipe = results.recipe | {group: results.recipe[group] | {key: value}}
    assert not any("claim" in line for line in headline(results.model_copy(update={"recipe": recipe})))


def test_captions_say_what_was_measured_on_fewer_images(make_results: Callable[..., Results]) -> None:
    results = make_results()
    fewer = [r.model_copy(update={"n": 200 if r.attack == "CW" else 500}) if r.attack != "none" else r for r in results.records]
    limited = results.model_copy(update={"records": fewer})
    for table in (table_1(limited), table_2(limited)):
        assert (
            "1,000 test images of cifar10 (PGD8, CW: 200 to 500 of them, drawn at random), classifier resnet56" in table.caption
        )


def test_table_2_over_seeds_has_means_and_ranges(make_results: Callable[..., Results], tmp_path: Path) -> None:
    plain = make_results()
    table = write_seeds([plain, shifted(plain, 7, {"teacher_at": 0.03})], tmp_path)
    assert table.rows[0][:3] == ["AT, no distillation", "61.50 (60.00 to 63.00)", "71.50 (70.00 to 73.00)"]
    assert table.rows[-1][0] == "same, NT sees clean"
    assert "over the seeds 0, 7" in table.caption
    assert (tmp_path / "table2.md").read_text() == table.markdown()
