from pathlib import Path
from typing import Any

import pytest

from purifiers.evaluation.audit.result import EVERYTHING, Audit
from purifiers.evaluation.records import AttackWarning, Record
from purifiers.evaluation.trust.checks import Check
from purifiers.reports.pages import attacks, doubted, overview, sentences, verdict, write_audit


def record(purifier: str, view: str, attack: str, accuracy: float, norm: str | None = "linf", **others: Any) -> Record:
    epsilon = {"linf": 8 / 255, "l2": 0.5, None: None}[norm]
    return Record(
        **{
            **{"dataset": "cifar10", "classifier": "resnet56", "purifier": purifier, "view": view, "attack": attack},
            **{"norm": norm, "epsilon": epsilon, "n": 100, "accuracy_undefended": 0.0, "accuracy": accuracy, "agreement": 0.0},
            **{"ci95": (accuracy - 0.05, accuracy + 0.05), "psnr": 20.0, "ssim": None, "l2": 0.5, "seconds": 61.0},
            **others,
        }
    )


ATTACKS = {"PGD": {"kind": "pgd"}, "PGD-L2": {"kind": "pgd", "norm": "l2"}, "AA": {"kind": "autoattack"}, "AA-L2": None}


def found(**others: Any) -> Audit:
    records = []
    for name in ("<b>mine", "JPEG"):
        records += [
            record(name, "none", "none", 0.9, None, n=1000),
            record(name, "full", "PGD", 0.4),
            record(name, "query", "Square", 0.5, attacked=60),
            record(name, "full", "PGD-L2", 0.3, "l2"),
            record(name, "worst", "white-box", 0.4),
            record(name, "worst", "black-box", 0.5),
            record(name, "worst", EVERYTHING, 0.375),
            record(name, "worst", EVERYTHING, 0.25, "l2"),
        ]
    check = Check(name="a check", status="passed", sentence="Fine.", figures={})
    failed = Check(name="gradients", status="failed", sentence="The gradient is masked.", figures={})
    skipped = Check(name="other", status="not applicable", sentence="-", figures={})
    return Audit(
        **{
            **{
                "settings": {
                    "epsilon": "8/255",
                    "epsilon_l2": "128/255",
                    "cascade": False,
                    "check_images": 10,
                    "attacks": ATTACKS,
                }
            },
            "seed": 0,
            **{"versions": {"torch": "2"}, "hardware": {"name": "cpu", "threads": 1, "platform": "x", "device": "cpu"}},
            **{
                "seconds": 1.0,
                "random": [],
                "records": records,
                "checks": {"<b>mine": [check, failed], "JPEG": [check, skipped]},
            },
            **{"warnings": [AttackWarning(view="full", attack="AA", model="JPEG", message="odd")]},
            **others,
        }
    )


def test_one_row_for_each_purifier() -> None:
    table = overview(found())
    row = dict(zip(table.header, table.rows[1], strict=True))
    assert row == {
        "purifier": "JPEG",
        "images": "100",
        "clean": "90.00",
        "PSNR (dB)": "20.0",
        "gray-box": "-",
        "transfer": "-",
        "black-box": "50.00",
        "white-box": "40.00",
        "worst case L-inf": "37.50 (32.50 to 42.50)",
        "worst case L2": "25.00 (20.00 to 30.00)",
        "trust checks (L-inf)": "1 passed on 10 images",
    }
    assert (
        "L-inf 8/255" in table.caption
        and "L2 128/255" in table.caption
        and "in front of resnet56; clean accuracy" in table.caption
    )
    records = [one.model_copy(update={"classifier": "own"}) if one.purifier == "JPEG" else one for one in found().records]
    assert "in front of resnet56; JPEG in front of own; clean" in overview(found(records=records)).caption
    assert [row[3] for row in attacks(found()).rows] == ["100", "100 (10 of 60 broken)", "100"] * 2


def test_a_failed_check_says_not_to_believe() -> None:
    audit = found()
    assert verdict(audit, "<b>mine") == "unreliable: 1 of 2 failed on 10 images"
    said = sentences(audit)
    assert ("<b>mine: these numbers are unreliable. gradients: The gradient is masked.", True) in said
    doubted = [text for text, doubted in said if doubted]
    assert len(doubted) == 3 and all(text.startswith("<b>mine") for text in doubted)
    assert any(
        t.startswith("JPEG: 37.50 % of 100 images") and "2 L-inf attacks within 8/255" in t and "AutoAttack through" in t
        for t, _ in said
    )
    assert ("JPEG: not measured under gray-box, transfer.", False) in said


def test_what_is_zero_is_believed() -> None:
    """A failed check means that a number is too high, which 0 % cannot be."""
    records = [
        one.model_copy(update={"accuracy": 0.0}) if (one.attack, one.norm) == (EVERYTHING, "linf") else one
        for one in found().records
    ]
    audit = found(records=records)
    assert doubted(audit, "<b>mine") == {"worst case L2", "trust checks (L-inf)"}
    assert [doubt for text, doubt in sentences(audit) if "worst of" in text and text.startswith("<b>mine")] == [False, True]
    audit = found(records=[one for one in records if one.norm != "l2"])
    assert doubted(audit, "<b>mine") == set() == doubted(found(), "JPEG")
    assert verdict(audit, "<b>mine") == "1 of 2 failed on 10 images"
    assert ("<b>mine: gradients: The gradient is masked.", False) in sentences(audit)


def test_what_was_left_out_and_what_was_not_is_said() -> None:
    left_out = AttackWarning(view="full", attack="AA", model="JPEG", left_out=True, message="it passes no gradient")
    records = [*found().records, record("JPEG", "bpda", "AA, rand", 0.4)]
    said = [text for text, _ in sentences(found(warnings=[left_out], records=records))]
    assert any("JPEG: left out" in text and text.endswith(": AutoAttack, 8/255 (full).") for text in said)
    assert not any(text.startswith("<b>mine: left out") for text in said)
    assert ["AutoAttack through" in text for text in said if text.startswith("JPEG") and "worst of" in text] == [False, True]


def test_attacks_are_called_by_their_settings() -> None:
    """Their own names stay in the records; the epsilon is the audit's; a title has the version, and whom it attacked."""
    records = [record("mine", "none", "none", 0.9, None), record("mine", "full", "AA, rand", 0.3)]
    records += [record("mine", "transfer", "PGD on other", 0.4), record("mine", "full", "PGD-L2", 0.3, "l2")]
    rows = attacks(found(records=records).titled()).rows
    assert [row[2] for row in rows] == ["AutoAttack, rand, 8/255", "PGD-20, 8/255 on other", "PGD-20, L2 128/255"]


def test_a_cascade_says_what_was_left_and_what_each_broke() -> None:
    cascade = attacks(found(settings=found().settings | {"cascade": True}))
    assert "accuracy so far" in cascade.header and "accuracy" not in cascade.header
    assert "accuracy" in attacks(found()).header


def test_without_checks_that_is_said() -> None:
    settings = found().settings | {"check_images": 0}
    audit = found(checks={}, settings=settings)
    assert verdict(audit, "JPEG") == "not checked"
    assert ("JPEG: no trust check was made.", False) in sentences(audit)


def test_the_page_turns_the_number_red_and_nothing_else(tmp_path: Path) -> None:
    page = write_audit(found(), tmp_path).read_text()
    assert page.count("<strong>37.50") == 1 and page.count("37.50 (32.50 to 42.50)</td>") == 1
    assert "<strong>unreliable: 1 of 2 failed on 10 images</strong></td>" in page
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    assert "--accent" in page
    text = (tmp_path / "audit.md").read_text()
    assert "- **\\<b>mine: these numbers are unreliable." in text
    assert "AutoAttack, 8/255, view full: JPEG: odd" in text
    assert Audit.read(tmp_path) == found()
    write_audit(found(checks={}), tmp_path)
    assert "<strong>" not in (tmp_path / "audit.html").read_text()


def test_a_worst_case_without_the_gradient_of_the_whole_is_said_to_be_that() -> None:
    records = [record("mine", "none", "none", 0.9, None), record("mine", "bpda", "PGD", 0.4)]
    one = found(records=[*records, record("mine", "worst", EVERYTHING, 0.4)], checks={})
    text = next(text for text, _ in sentences(one) if "worst of" in text)
    assert "1 L-inf attack within 8/255" in text and "None of them used the gradient through the purifier" in text


def test_a_classifier_that_guesses_is_said_to() -> None:
    guessing = [one.model_copy(update={"accuracy_undefended": 0.11}) for one in found().records]
    good = [one.model_copy(update={"accuracy_undefended": 0.91}) for one in found().records]
    said = [text for text, _ in sentences(found(records=guessing))]
    assert any(text.startswith("JPEG") and "11.00 %" in text and "train it first" in text for text in said)
    assert not any("train it first" in text for text, _ in sentences(found(records=good)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_norm_that_was_not_attacked_is_said(norm: str) -> None:
    left = [record for record in found().records if record.norm != norm]
    said = [text for text, _ in sentences(found(records=left))]
    assert f"JPEG: no attack in {'L-inf' if norm == 'linf' else 'L2'} was measured." in said
    assert overview(found(records=left)).rows
