"""The tables of one purifier, from made-up results."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from purifiers.attacks import VIEWS
from purifiers.evaluation.records import Record, Results
from purifiers.reports import paper
from purifiers.reports.tables import claim, claim_applies, table_1, table_2, table_2_over_seeds, threat_models, training

Make = Callable[..., Results]


def test_table_1_has_the_papers_columns_on_cifar10_alone(make_results: Make) -> None:
    table = table_1(make_results())
    pgd = dict(zip(table.header, table.rows[1], strict=True))
    assert (pgd["attack"], pgd["purified"]) == ("PGD-20, 8/255", "73.00")
    assert (pgd["paper"], pgd["paper's NRP"], pgd["paper's SOAP"]) == ("40.20", "35.07", "39.14")
    assert dict(zip(table.header, table.rows[0], strict=True))["paper"] == "-"
    assert "89.46" in table.caption
    results = make_results("digits")
    results.recipe["data"]["name"] = "digits"
    other = table_1(results)
    assert "paper" not in other.header
    assert "89.46" not in other.caption


def test_the_papers_numbers_stand_beside_the_papers_attacks_alone(make_results: Make) -> None:
    """Not beside another epsilon under the same name, nor a folder of images that happens to be called cifar10."""
    results = make_results()
    results.recipe["evaluation"]["attacks"]["PGD8"]["epsilon"] = "4/255"
    table = table_1(results)
    pgd, cw = (dict(zip(table.header, row, strict=True)) for row in table.rows[1:])
    assert (pgd["paper"], cw["paper"]) == ("-", "56.87")
    assert table_2(results).rows[1][2] == "71.00"
    results.recipe["data"]["name"] = "folder"
    assert "paper" not in table_1(results).header


def test_table_2_has_the_papers_numbers_in_brackets(make_results: Make) -> None:
    rows = {row[0]: row for row in table_2(make_results()).rows}
    assert list(rows) == [
        "AT, no distillation",
        "student of AT",
        "student of NT",
        "student of AT and NT",
        "student of NT, which sees clean",
        "student of AT and NT, which sees clean",
    ]
    assert rows["student of AT"][2] == "71.00 (35.46)"
    assert rows["student of AT"][1] == "61.00"
    assert rows["student of AT and NT, which sees clean"][2] == "74.00"


def test_table_2_of_a_guided_student_is_of_the_papers_losses(make_results: Make) -> None:
    results = make_results(stages=("teacher_at", "student_at", "student_nt", "student_paper", "student_other", "student"))
    rows = {row[0]: row[1:] for row in table_2(results).rows}
    assert rows["student of AT and NT"][:2] == ["63.00", "73.00 (40.20)"]
    assert rows["the student of this run"][:2] == ["65.00", "75.00"]
    recipe = results.recipe | {"student": results.recipe["student"] | {"classification_weight": 1.0}}
    assert claim_applies(results.model_copy(update={"recipe": recipe}))
    assert claim([results]) == claim([make_results()])


def test_the_papers_numbers_are_the_papers(pytestconfig: pytest.Config) -> None:
    """Compared with the paper's text where it lies beside the project."""
    text = Path(pytestconfig.rootpath).parent / "shared" / "paper" / "distillation-based-purification.md"
    if not text.is_file():
        pytest.skip(f"the paper's text is not at {text}")
    content = text.read_text()
    for i, (name, attack) in enumerate(zip(("PGD8", "PGD16", "FGSM", "BIM", "CW", "AA"), paper.ATTACKS, strict=True)):
        cells = [f"{paper.TABLE_1[column][attack]:.2f}" for column in ("paper", "paper's NRP", "paper's SOAP")]
        assert re.search(rf"^{name}\s+" + r"\s+".join(cells), content, re.M)
        column = [f"{paper.TABLE_2[row][attack]:.2f}" for row in ("teacher_at", "student_at", "student_nt", "student")]
        lines = [line for line in content.splitlines() if line.startswith(("\\checkmark", "-\t\\checkmark"))]
        assert [line.split("\t")[3 + i] for line in lines] == column


def test_table_2_bounds_its_intervals_by_their_longer_side(make_results: Make) -> None:
    results = make_results()
    records = [r.model_copy(update={"ci95": (r.accuracy - 0.002, r.accuracy + 0.0731)}) for r in results.records]
    assert "up to 7.3 points" in table_2(results.model_copy(update={"records": records})).caption


def test_captions_have_what_was_measured_on_fewer_images(make_results: Make) -> None:
    results = make_results()
    fewer = [
        r.model_copy(update={"n": 200 if r.attack == "CW-40" else 500}) if r.attack != "none" else r for r in results.records
    ]
    limited = results.model_copy(update={"records": fewer})
    for table in (table_1(limited), table_2(limited)):
        assert "1,000 test images of cifar10 (PGD-20, 8/255, CW-40: 200 to 500 of them" in table.caption
    assert "of them" not in table_1(results).caption


def shifted(results: Results, seed: int, by: dict[str, float]) -> Results:
    def moved(r: Record) -> Record:
        accuracy = r.accuracy + by.get(r.purifier, 0.0)
        return r.model_copy(update={"accuracy": accuracy, "ci95": (accuracy - 0.01, accuracy + 0.01)})

    records = [moved(r) for r in results.records]
    return results.model_copy(update={"records": records, "seed": seed})


def test_whether_the_papers_claim_holds(make_results: Make) -> None:
    # The rows of make_results rise by one point each: AT, student of AT, student of NT, student of both; intervals reach
    # one point to each side.
    plain = make_results()
    found = claim([plain])
    assert "not decided" in found and "one seed" in found and "below 1.0 " in found
    assert "student of AT and NT against student of AT +2.00;" in found
    assert found.endswith("student of NT against AT, no distillation +2.00.")
    clear = shifted(plain, 1, {"student_at": 0.01, "student_nt": 0.01, "student": 0.02})
    assert " holds here" in claim([clear])
    assert "does not hold here" in claim([shifted(plain, 1, {"student": -0.04})])
    both = claim([clear, shifted(plain, 1, {"student": -0.015})])
    assert "not decided" in both and "2 seeds" in both
    assert "against student of NT +0.75 (by seed -0.50 to +2.00)" in both


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [("student", "start", "teacher_at"), ("student", "classification_weight", 1.0), ("teacher_nt", "epochs", 0)],
)
def test_another_method_does_not_test_the_claim(make_results: Make, group: str, key: str, value: object) -> None:
    results = make_results()
    assert claim_applies(results)
    recipe = results.recipe | {group: results.recipe[group] | {key: value}}
    assert not claim_applies(results.model_copy(update={"recipe": recipe}))


def test_table_2_over_seeds_has_means_and_ranges(make_results: Make) -> None:
    plain = make_results()
    table = table_2_over_seeds([plain, shifted(plain, 7, {"teacher_at": 0.03})])
    assert table.rows[0][:3] == ["AT, no distillation", "61.50 (60.00 to 63.00)", "71.50 (70.00 to 73.00)"]
    assert table.rows[-1][0] == "student of AT and NT, which sees clean"
    assert "seeds 0, 7" in table.caption


def test_the_training_table_has_the_share_of_the_device_that_was_used(make_results: Make) -> None:
    epochs = [{"epoch": e, "images_per_second": 500.0 / e, "flops_per_image": 8e8, "seconds": 30.0 * e} for e in (1, 2)]
    results = make_results().model_copy(update={"training": {"student": epochs, "teacher_nt": []}})
    # 30,000 images in 90 s, 0.8 GFLOP each: 266.7 GFLOP/s of 2,000.
    assert training(results).rows == [["student", "2", "1 min 30 s", "333", "0.80", "267", "13"]]
    assert "2,000 GFLOP/s" in training(results).caption


def test_a_training_on_another_device_has_no_share_of_this_ones_peak(make_results: Make) -> None:
    results = make_results()
    counted = {"student": [{**epoch, "flops_per_image": 1e9} for epoch in results.training["student"]]}
    here = training(results.model_copy(update={"training": counted}))
    away = training(results.model_copy(update={"training": counted, "peak_flops": None}))
    assert [here.rows[0][-1], away.rows[0][-1]] == ["0", "-"]
    assert "another kind of device" in away.caption and "another kind of device" not in here.caption


def test_threat_models_stand_side_by_side(make_results: Make) -> None:
    table = threat_models(make_results())
    assert [row[:2] for row in table.rows] == [["PGD-20, 8/255", "blind"], ["PGD-20, 8/255", "full"], ["CW-40", "blind"]]
    assert table.rows[1][2:4] == ["1,000", "1.23"]
    assert f"full: the attacker {VIEWS['full'].attacker}" in table.caption and "bpda" not in table.caption


def test_every_view_has_its_words() -> None:
    assert all(view.attacker for view in VIEWS.values())
