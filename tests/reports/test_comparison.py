"""Table 1 for all purifiers, from made-up records."""

import pytest

from purifiers.evaluation.records import Cost, Record, Results
from purifiers.recipes.load import changed, load_recipe, parse_recipe
from purifiers.reports.pages import all_tables, headline
from purifiers.reports.tables import comparison, purifiers_of, table_1_for_all, table_of_baselines

ATTACKS = ("none", "PGD-20, 8/255", "AutoAttack, 8/255")


def records(purifier: str, accuracy: float, n: int = 1000, classifier: str = "resnet56") -> list[Record]:
    return [
        Record(
            dataset="cifar10",
            classifier=classifier,
            purifier=purifier,
            view="none" if attack == "none" else "blind",
            attack=attack,
            norm="linf",
            epsilon=8 / 255,
            n=n,
            accuracy_undefended=0.9 if attack == "none" else 0.02,
            accuracy=accuracy - 0.1 * i,
            agreement=0.5,
            ci95=(accuracy - 0.02, accuracy + 0.02),
            psnr=30.0,
            ssim=0.9,
            l2=1.0,
            seconds=1.0,
        )
        for i, attack in enumerate(ATTACKS)
    ]


def results(ours: float = 0.9, baselines: tuple[str, ...] = ("NRP", "SOAP, rotation", "JPEG")) -> Results:
    accuracy = {"NRP": 0.7, "SOAP, rotation": 0.6, "JPEG": 0.5}
    listed = records("student", ours)
    for title in baselines:
        own = title.startswith("SOAP")
        listed += records(f"baseline: {title}", accuracy[title], 100 if own else 1000, "resnet20 of it" if own else "resnet56")
    return Results(
        recipe=load_recipe("strong-cpu").model_dump(mode="json"), seed=0, versions={"torch": "2"},
        hardware={"name": "x", "threads": 2, "platform": "x", "device": "cpu"}, seconds={"training": 1.0, "evaluation": 1.0},
        training={"baseline-nrp": [{"epoch": e, "loss": 1.0, "images_per_second": 2.0, "seconds": 25.0} for e in (1, 2, 3)]}, parameters=1,
        peak_flops=1.0, records=listed, warnings=[],
        costs={"classifier": Cost(parameters=855_770, flops=253_000_000, images_per_second=400.4, batch_size=100),
               "baseline: JPEG": Cost(parameters=0, flops=0, images_per_second=800.0, batch_size=100)},
    )  # fmt: skip


def test_every_purifier_has_a_row_and_the_papers_stand_beside() -> None:
    table = table_1_for_all(results())
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == [
        *("no purifier", "ours", "NRP", "SOAP, rotation", "JPEG"),
        *("paper, as reported", "paper's NRP, as reported", "paper's SOAP, as reported"),
    ]
    assert table.header == [
        "purifier",
        "clean",
        "PGD-20, 8/255",
        "AutoAttack, 8/255",
        "parameters",
        "MFLOP per image",
        "images/s",
    ]
    assert rows["no purifier"] == ["90.00", "2.00", "2.00", "855,770", "253", "400"]
    assert rows["ours"] == ["90.00", "80.00", "70.00", "-", "-", "-"]
    assert rows["JPEG"][3:] == ["0", "-", "800"]
    assert rows["paper's SOAP, as reported"][:3] == ["-", "39.14", "41.03"]
    assert "SOAP, rotation: resnet20, alone 90.00 on 100 clean images" in table.caption
    assert len({len(row) for row in [table.header, *table.rows]}) == 1


def test_ours_with_the_papers_losses_alone_has_a_row_and_no_part_in_the_sentence() -> None:
    alone = results()
    both = alone.model_copy(update={"records": [*alone.records, *records("student_paper", 0.65)]})
    rows = {row[0]: row[1:3] for row in table_1_for_all(both).rows}
    assert list(rows)[1:3] == ["ours", "ours, the paper's losses"]
    assert rows["ours, the paper's losses"] == ["65.00", "55.00"]
    assert comparison(both) == comparison(alone)
    assert len(table_of_baselines(both).rows) == 3


def test_the_size_that_was_used_stands_beside_the_papers() -> None:
    rows = {row[0]: row for row in table_of_baselines(results()).rows}
    assert "blocks 2" in rows["NRP"][1] and "23 blocks" in rows["NRP"][2]
    assert rows["NRP"][3:] == ["20,000 images, 3 epochs", "1 min 15 s"]
    assert rows["JPEG"][1:] == ["jpeg: quality 75", "-", "-", "-"]
    assert "classifier resnet20" in rows["SOAP, rotation"][1]


@pytest.mark.parametrize(("ours", "said"), [(0.9, "is better than"), (0.5, "is NOT better than"), (0.705, "may be chance")])
def test_a_purifier_that_does_not_beat_the_baselines_is_told_so(ours: float, said: str) -> None:
    found = comparison(results(ours))
    assert said in found and "NRP" in found
    assert found in headline(results(ours))


def test_without_baselines_there_is_nothing_to_compare() -> None:
    alone = results(baselines=())
    assert purifiers_of(alone) == {} and comparison(alone) == ""
    assert all_tables(alone)[0].title.startswith("Table 1. Purification")
    assert all_tables(results())[0].title.startswith("Table 1. Every purifier")


def test_another_use_of_ours_is_no_rival() -> None:
    compared = results(0.6, baselines=("JPEG",))
    recipe = changed(parse_recipe(compared.recipe), {}).model_dump(mode="json")
    records_of_it = records("baseline: ours, adaptive", 0.9)
    with_it = compared.model_copy(update={"recipe": recipe, "records": [*compared.records, *records_of_it]})
    assert "is better than the best of 1 other purifiers, JPEG" in comparison(with_it)


def test_another_purifier_of_ours_is_no_rival() -> None:
    compared = results(0.6, baselines=("JPEG",))
    compared.recipe["baselines"]["strong"] = {"kind": "pretrained", "source": "cifar10"}
    compared.records.extend(records("baseline: strong", 0.9))
    assert "is better than the best of 1 other purifiers, JPEG" in comparison(compared)


def test_a_rival_in_front_of_a_classifier_of_its_own_is_told_apart() -> None:
    assert "SOAP, rotation (in front of resnet20 of it)" in comparison(results(0.5, baselines=("SOAP, rotation", "JPEG")))
