import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from purifiers.attacks import VIEWS
from purifiers.evaluation.audit.result import Audit
from purifiers.evaluation.evaluate import Examples
from purifiers.evaluation.records import Results
from purifiers.reports.figures import accuracy_figure
from purifiers.reports.pages import all_tables, headline, write_card, write_report, write_seeds
from purifiers.reports.tables import claim, threat_models
from tests.reports.conftest import record

Make = Callable[..., Results]


def test_table_2_needs_all_its_rows(make_results: Make) -> None:
    assert [table.title[:7] for table in all_tables(make_results())] == ["Table 1", "Table 2", "The sam", "Trainin"]
    assert [table.title[:7] for table in all_tables(make_results(stages=("student",)))] == ["Table 1", "The sam", "Trainin"]


def test_the_headline_never_hides_the_informed_attacker(make_results: Make) -> None:
    assert "at most 1.23 %" in headline(make_results())[2]
    assert "No attack through the purifier" in headline(make_results(full=False))[2]


def test_the_headline_has_the_papers_claim_where_it_is_tested(make_results: Make) -> None:
    results = make_results()
    assert claim([results]) in headline(results)
    assert not any("claim" in line for line in headline(make_results(stages=("student",))))


@pytest.mark.parametrize("view", ["full", "bpda", "eot", "query"])
def test_the_lowest_of_all_views_is_reported_everywhere(make_results: Make, view: str) -> None:
    results = make_results(full=False)
    results.records.append(record("student", view, "PGD-20, 8/255", 0.0456, "cifar10"))
    informed = headline(results)[2]
    assert VIEWS[view].attacker in informed and "4.56 % (PGD-20, 8/255, 1,000 images, 95 % interval up to 5.56 %)" in informed
    assert f"{view}: the attacker {VIEWS[view].attacker}" in threat_models(results).caption
    results.records.append(record("student", "full" if view != "full" else "bpda", "CW-40", 0.5, "cifar10"))
    informed = headline(results)[2]
    assert "4.56 % (PGD-20, 8/255" in informed and f"views {view}, " in informed
    bars = [bar.get_height() for bar in accuracy_figure(results).axes[0].containers[2]]
    assert bars == pytest.approx([4.56, 50.0])


def test_the_headline_has_what_makes_numbers_worthless(make_results: Make) -> None:
    """An attack that changes nothing, a classifier that guesses, a purifier that ruins clean images."""
    text = " ".join(headline(make_results()))  # the fixture's classifier is right on 5 % of everything
    assert "Not tested: PGD-20, 8/255, CW-40" in text and "train it first" in text
    assert "The purifier costs" not in text
    results = make_results()
    clean = {"accuracy_undefended": 0.95}
    records = [r.model_copy(update=clean) if r.attack == "none" else r for r in results.records]
    text = " ".join(headline(results.model_copy(update={"records": records})))
    assert "Not tested" not in text and "train it first" not in text
    assert "The purifier costs 32.00 points" in text
    fewer = [r.model_copy(update={"n": r.n - 1}) if r.attack != "none" else r for r in make_results().records]
    text = " ".join(headline(make_results().model_copy(update={"records": fewer})))
    assert "Not tested" not in text, "of other images the clean accuracy may be another"


@pytest.fixture(scope="module")
def report(make_results: Make, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report, as written."""
    return write_report(make_results(), examples, tmp_path_factory.mktemp("report") / "run").parent


def test_the_caption_of_the_picture_depends_on_whether_the_attack_changed_a_class(
    report: Path, make_results: Make, examples: Examples, tmp_path: Path
) -> None:
    write_report(make_results(), replace(examples, changed=False), tmp_path)
    pages = [(folder / "report.html").read_text() for folder in (report, tmp_path)]
    assert ["the class of none" in page for page in pages] == [False, True]


def test_the_report_is_complete_and_self_contained(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count("data:image/png;base64") == 1
    assert page.count("data:image/svg+xml;base64") == 2
    for text in ("Table 1.", "Table 2.", "73.00", "it seems &lt;odd&gt;", "a &lt;fast&gt; machine", "1 h 02 min", "1,290,675"):
        assert text in page
    markdown = (report / "report.md").read_text()
    for link in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (report / link).stat().st_size > 1000
    assert markdown.count("![") == 3
    assert "| PGD-20, 8/255 |" in markdown
    assert "- time: training 1 h 02 min, evaluation 1 min 05 s\n" in markdown
    assert sorted(path.name for path in (report / "figures").iterdir()) == ["accuracy.svg", "examples.png", "training.svg"]


def test_equal_results_give_equal_files(report: Path, make_results: Make, examples: Examples, tmp_path: Path) -> None:
    write_report(make_results(), examples, tmp_path / "run")
    contents = [
        {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in (report, tmp_path / "run")
    ]
    assert contents[0] == contents[1] != {}


def test_the_card_has_the_worst_cases_of_an_audit_of_that_run_alone(
    make_results: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = make_results()
    record = results.records[0]
    folder = tmp_path / "run"
    worst = {"purifier": "run", "view": "worst", "attack": "all attacks", "epsilon": 8 / 255, "n": 200, "accuracy": 0.007}
    groups = ("all attacks", "white-box")
    records = [
        record.model_copy(update={**worst, "norm": norm, "attack": group}) for norm in ("linf", "l2") for group in groups
    ]
    audit = Audit(settings={}, seed=0, versions={}, hardware={}, seconds=1, random=[], records=records, checks={}, warnings=[])
    for other, there in (({}, True), ({"classifier": "another"}, False), ({"dataset": "photos"}, False)):
        own = [one.model_copy(update=other) for one in records]
        audit.model_copy(update={"records": own}).write(folder)
        write_card(folder, results)
        card = (folder / "card.md").read_text()
        assert ("| worst of the audit, 8/255 | full | 200 | - | 0.70 |" in card) == there
        assert ("| worst of the audit, L2 8/255 | full | 200 |" in card) == there
    # A report that is written elsewhere is of the same run, and has its audit.
    audit.write(folder)
    (tmp_path / "else").mkdir()
    write_card(tmp_path / "else", results, folder)
    card = (tmp_path / "else" / "card.md").read_text()
    assert card.startswith("---") and "\n# run\n" in card and "path/to/run" in card
    assert "| worst of the audit, 8/255 | full | 200 | - | 0.70 |" in card
    with monkeypatch.context() as there:
        there.chdir(folder)
        write_card(Path(), results)
    assert (folder / "card.md").read_text() == card
    # Without white-box attacks the worst case is none of an attacker who knows the purifier; a damaged audit is left out.
    audit.model_copy(update={"records": [one for one in records if one.attack == "all attacks"]}).write(folder)
    write_card(folder, results)
    assert "worst of the audit" not in (folder / "card.md").read_text()
    (folder / "audit.json").write_text("{")
    write_card(folder, results)
    assert "worst of the audit" not in (folder / "card.md").read_text()


def test_table_2_over_seeds_is_written(make_results: Make, tmp_path: Path) -> None:
    table = write_seeds([make_results(), make_results()], tmp_path)
    assert (tmp_path / "table2.md").read_text() == table.markdown()
