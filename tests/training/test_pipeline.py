"""The stages together: what a run leaves behind, that it resumes after a kill, and what it refuses."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import pytest
import torch

from purifiers import Purifier
from purifiers.errors import CheckpointError, ConfigError, MissingFileError
from purifiers.evaluation.evaluate import _peak
from purifiers.networks import ResNet
from purifiers.recipes.load import changed, load_recipe, recipe_text
from purifiers.recipes.schema import Recipe
from purifiers.registry import describe, fingerprint
from purifiers.runs import STATE_FILE, Run, open_run, student_configs
from purifiers.storage import load_state, save_state
from purifiers.training.pipeline import train_recipe
from purifiers.training.starting import load_starts, prepare_folder, report_accuracy
from tests.conftest import TINY


def test_a_run_leaves_what_the_design_says(tiny_run: Run) -> None:
    folder = tiny_run.folder
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}
    stages = ["classifier", "teacher_nt", "teacher_at", "student", "student_paper", "student_at", "student_nt"]
    files = ["config.json", "model.safetensors", "state.safetensors"]
    expected = {"recipe.yaml", "classes.json", "config.json", "model.safetensors"}
    assert names == expected | {f"checkpoints/{stage}/{file}" for stage in stages for file in files}
    assert load_recipe(folder / "recipe.yaml") == tiny_run.recipe
    images = torch.rand(2, 3, 16, 16)
    loaded = Purifier.from_pretrained(folder)
    torch.testing.assert_close(loaded(images), tiny_run.purifiers["student"](images))
    assert list(tiny_run.histories) == stages


def test_students_of_the_ablation_start_alike_and_end_apart(tiny_run: Run) -> None:
    first_losses = {tiny_run.histories[name][0]["mse"] for name in ("student_paper", "student_at", "student_nt")}
    assert max(first_losses) - min(first_losses) < 0.01
    prints = {fingerprint(purifier) for purifier in tiny_run.purifiers.values()}
    assert len(prints) == len(tiny_run.purifiers) == 6


def test_students_of_table_2_have_the_papers_losses(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe("student.nt_teacher_input=clean", "student.logits_weight=0.5", "student.strength_low=0.5")
    assert student_configs(recipe, ablation=False) == {"student": recipe.student}
    configs = student_configs(recipe, ablation=True)
    assert configs["student"] == recipe.student
    assert {name: (one.logits_weight, one.strength_low) for name, one in configs.items() if name != "student"} == dict.fromkeys(
        ("student_paper", "student_at", "student_nt"), (0, 1)
    )
    both = student_configs(changed(recipe, {"both_inputs": True}), ablation=True)
    others = {name for name, one in both.items() if one.nt_teacher_input == "adversarial"}
    assert others == {"student_other", "student_nt_other"} == both.keys() - configs.keys()
    assert list(student_configs(load_recipe("paper"), ablation=True)) == [
        "student",
        "student_at",
        "student_nt",
        *sorted(others)[::-1],
    ]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    tiny_run: Run, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    again = train_recipe(tiny_recipe(), tmp_path / "same", device="cpu")
    assert fingerprint(again.purifiers["student"]) == fingerprint(tiny_run.purifiers["student"])
    assert_opened_is(again)
    other = train_recipe(tiny_recipe("seed=1"), tmp_path / "other", device="cpu")
    assert fingerprint(other.purifiers["student"]) != fingerprint(tiny_run.purifiers["student"])


def assert_opened_is(run: Run) -> None:
    """What is read back is what was just trained."""
    opened = open_run(run.recipe, run.folder, "cpu")
    assert fingerprint(opened.classifier) == fingerprint(run.classifier)
    assert set(opened.purifiers) == set(run.purifiers) == {"teacher_nt", "teacher_at", "student"}
    assert all(fingerprint(opened.purifiers[stage]) == fingerprint(purifier) for stage, purifier in run.purifiers.items())
    assert opened.histories == run.histories
    assert opened.classifier_name == "resnet8-width4"


def test_a_second_run_trains_nothing_and_another_recipe_is_refused(
    tiny_recipe: Callable[..., Recipe], run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_copy / "cache")  # adversarial examples that are made again lose no training
    written = (run_copy / "recipe.yaml").read_text()
    train_recipe(tiny_recipe("evaluation.views=[blind]"), run_copy, device="cpu")
    out = capsys.readouterr().out
    assert out.count("is trained already") == 4
    assert "epoch 1/" not in out
    assert load_recipe(run_copy / "recipe.yaml").evaluation.views == ("blind",)  # evaluation may differ
    (run_copy / "recipe.yaml").write_text(written)
    with pytest.raises(CheckpointError, match=r"student\.epochs is 2 there, 3 now; .*restart"):
        train_recipe(tiny_recipe("student.epochs=3"), run_copy, device="cpu")
    with pytest.raises(CheckpointError, match=r"evaluation\.batch_size is \d+ there, 7 now"):  # training attacks are run in it
        train_recipe(tiny_recipe("evaluation.batch_size=7"), run_copy, device="cpu")
    assert (run_copy / "recipe.yaml").read_text() == written


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from purifiers.recipes.load import load_recipe
from purifiers.training.pipeline import train_recipe
train_recipe(load_recipe("digits", sys.argv[2:]), Path(sys.argv[1]), device="cpu")
"""


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_a_killed_run_resumes_and_ends_like_one_that_was_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = ("teacher_at.epochs=10", "student.epochs=3")
    recipe, cut = load_recipe("digits", [*TINY, *longer]), tmp_path / "cut"
    whole = train_recipe(recipe, tmp_path / "whole", device="cpu")
    command = [sys.executable, "-c", SCRIPT, str(cut), *TINY, *longer]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("teacher_at") and "epoch 3/10" in line:
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL, "it was killed in the middle"
    capsys.readouterr()
    train_recipe(recipe, cut, device="cpu")
    output = capsys.readouterr().out
    assert "teacher_nt       is trained already" in output
    assert "teacher_at       resumes after epoch" in output
    finished = Purifier.from_pretrained(cut)
    assert fingerprint(finished.network) == fingerprint(whole.purifiers["student"].network)


def test_restart_discards_all_of_a_run_and_nothing_else(
    tiny_recipe: Callable[..., Recipe], run_copy: Path, tmp_path: Path
) -> None:
    """Neither what is not ours, nor anything before the new command has proved usable."""
    foreign = tmp_path / "photos"
    (foreign / "cache" / "mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="not made by a run"):
        prepare_folder(tiny_recipe(), foreign, restart=True)
    assert (foreign / "cache" / "mine").is_dir()
    (run_copy / "notes.txt").write_text("mine")
    (run_copy / "cache" / "thesis.bib").write_text("mine too")
    before = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="cannot load a classifier"):
        train_recipe(tiny_recipe("classifier.source=nothing"), run_copy, device="cpu", restart=True)
    assert {path: path.stat().st_mtime_ns for path in run_copy.rglob("*") if path.is_file()} == before
    prepare_folder(tiny_recipe("seed=5"), run_copy, restart=True)
    assert {path.relative_to(run_copy).as_posix() for path in run_copy.rglob("*")} == {"notes.txt", "cache", "cache/thesis.bib"}


@pytest.mark.parametrize("name", ["checkpoints/mine.pt", "figures/mine.png", "results.json", "recipe.yaml"])
def test_what_no_run_made_is_neither_taken_for_a_run_nor_replaced(
    name: str, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    (file := tmp_path / name).parent.mkdir(exist_ok=True)
    file.write_text("# mine\n" + recipe_text(tiny_recipe("precision=auto")))
    for restart in (False, True):
        with pytest.raises(ConfigError, match=r"no run|not made by a run"):
            train_recipe(tiny_recipe("precision=auto"), tmp_path, device="cpu", restart=restart)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_a_discarding_that_was_cut_off_can_be_done_again(
    tiny_recipe: Callable[..., Recipe], run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "model.safetensors" and path.parent == run_copy:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        prepare_folder(tiny_recipe(), run_copy, restart=True)
    prepare_folder(tiny_recipe(), run_copy, restart=True)
    assert not any(run_copy.iterdir())


def test_networks_that_a_run_did_not_make_are_never_replaced(
    tiny_recipe: Callable[..., Recipe], run_copy: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    Purifier.from_pretrained("cifar10").save_pretrained(saved)
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ConfigError, match=r"config\.json that no run made"):
        train_recipe(tiny_recipe(), saved, device="cpu")
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    classifier, student = run_copy / "checkpoints" / "classifier", run_copy / "checkpoints" / "student"
    for override in (
        f"classifier.source={classifier}",
        f"classifier.source=hf:{classifier}",
        f"student.start={run_copy}",
        f"teacher_at.start={student}",
        f"variants.other={{student.start: {student}}}",
        f"audit.surrogates=['{student}+module:classifier']",
        f"baselines.before={{kind: pretrained, source: {run_copy}}}",
    ):
        with pytest.raises(ConfigError, match="restart would discard"):
            prepare_folder(tiny_recipe(override), run_copy, restart=True)
    assert all((folder / "model.safetensors").is_file() for folder in (classifier, student, run_copy))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        train_recipe(tiny_recipe(), tmp_path / "file", device="cpu")


def test_other_images_are_another_run_and_moved_ones_are_not(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    for name in ("a", "b", "run"):
        (tmp_path / name).mkdir()
    of_a, of_b = (tiny_recipe("data.name=folder", "data.size=null", f"data.path={tmp_path / name}") for name in ("a", "b"))
    (tmp_path / "run" / "recipe.yaml").write_text(recipe_text(of_a))
    with pytest.raises(CheckpointError, match=r"data\.path is .*a there, .*b now"):
        prepare_folder(of_b, tmp_path / "run", restart=False)
    (tmp_path / "a").rename(tmp_path / "c")
    prepare_folder(of_b, tmp_path / "run", restart=False)


def with_classifier(run: Run, classifier: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    other = copy(run)
    other.classifiers = {"classifier": classifier}  # type: ignore[dict-item]
    return other


def test_a_classifier_that_guesses_is_pointed_out(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = ResNet(8, 10).eval()
    torch.nn.init.zeros_(classifier.linear.weight)
    data = tiny_run.images("train")
    report_accuracy(with_classifier(tiny_run, classifier), data)
    assert "hardly better than guessing" in capsys.readouterr().out
    report_accuracy(with_classifier(tiny_run, lambda images: torch.eye(10)[data.labels[: len(images)]]), data)
    assert "guessing" not in capsys.readouterr().out


def test_throughput_is_compared_with_the_kind_of_machine_that_trained(
    tiny_recipe: Callable[..., Recipe], run_copy: Path
) -> None:
    opened = open_run(tiny_recipe(), run_copy, "cpu")
    assert _peak(opened)
    state = opened.checkpoint("teacher_at") / STATE_FILE
    trained = load_state(state)
    for other in ({"device": "cuda"}, {"threads": trained["threads"] + 1}):
        save_state(state, {**trained, **other})
        assert _peak(opened) is None


def test_opening_what_is_not_trained(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no trained student"):
        open_run(tiny_recipe(), tmp_path, "cpu")


def test_the_recipe_is_written_as_people_write_it(tiny_run: Run) -> None:
    paper = load_recipe("paper")
    assert "epsilon: 8/255" in recipe_text(paper)


def test_a_residual_teacher_nt_needs_no_training_and_a_student_may_start_from_teacher_at(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="teacher_nt"):
        tiny_recipe("teacher_nt.epochs=0")
    still = ("student.start=teacher_at", "student.learning_rate=1e-12", "student.schedule=constant")  # it ends where it starts
    own = f"classifier.source={tiny_run.checkpoint('classifier')}"
    recipe = tiny_recipe("teacher_nt.epochs=0", "purifier.residual=true", own, *still)
    run = train_recipe(recipe, tmp_path, device="cpu")
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(run.purifiers["teacher_nt"](images), images)
    student, teacher = (dict(run.purifiers[name].network.named_parameters()) for name in ("student", "teacher_at"))
    for name, value in student.items():
        torch.testing.assert_close(value, teacher[name], rtol=0, atol=1e-8)
    assert open_run(run.recipe, tmp_path, "cpu").histories.keys() == {"teacher_nt", "teacher_at", "student"}


def test_a_student_may_be_smaller_than_its_teachers_and_goes_on_from_one_of_its_size(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, tmp_path: Path
) -> None:
    given = (f"classifier.source={tiny_run.checkpoint('classifier')}", f"teacher_at.start={tiny_run.checkpoint('teacher_at')}")
    small = "student.network={network: cae, widths: [4], blocks: [1], unshuffle: 2, residual: true}"
    recipe = tiny_recipe(*given, "teacher_at.epochs=0", small, "student.teacher_once=true")
    run = train_recipe(recipe, tmp_path / "run", device="cpu")
    assert describe(run.purifiers["student"].network) == describe(recipe.student.network.build())
    assert fingerprint(run.purifiers["teacher_at"]) == fingerprint(tiny_run.purifiers["teacher_at"])
    opened = open_run(recipe, tmp_path / "run", "cpu")
    assert fingerprint(opened.purifiers["student"]) == fingerprint(run.purifiers["student"])
    starts = load_starts(changed(recipe, {"student.start": str(tmp_path / "run")}), torch.device("cpu"))
    assert fingerprint(starts["student"]) == fingerprint(run.purifiers["student"].network)
    alone = train_recipe(changed(recipe, {"student.teachers": ["AT"]}), tmp_path / "alone", device="cpu")
    assert alone.histories["student"][0]["distillation"] != run.histories["student"][0]["distillation"]
    paper = student_configs(changed(recipe, {"student.teachers": ["AT"], "student.beta": 0}), ablation=True)["student_nt"]
    assert (paper.teachers, paper.beta, paper.gamma) == (("AT", "NT"), 0.5, 0.5)
    for change in ("student.noise=0.1", "training_attacks={}"):
        with pytest.raises(ConfigError, match="teacher_once"):
            tiny_recipe("student.teacher_once=true", change, "teacher_at.clean_share=1", "student.clean_share=1")
    with pytest.raises(ConfigError, match="another network"):
        tiny_recipe(small, "student.start=teacher_at")


def test_a_training_that_starts_from_purifiers_that_are_there_and_may_be_moved(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def recipe(first: Path) -> Recipe:
        teacher = (f"teacher_at.start={first}/checkpoints/teacher_at", "teacher_at.epochs=0")
        student = (f"student.start={first}", "student.learning_rate=1e-12", "student.schedule=constant")
        return tiny_recipe("seed=1", f"classifier.source={tiny_run.checkpoint('classifier')}", *teacher, *student)

    second = train_recipe(recipe(run_copy), tmp_path / "second", device="cpu")
    teachers = [run.purifiers["teacher_at"].network.state_dict() for run in (tiny_run, second)]
    assert all(torch.equal(value, teachers[1][name]) for name, value in teachers[0].items())
    students = [dict(run.purifiers["student"].network.named_parameters()) for run in (tiny_run, second)]
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=0, atol=1e-8)
    assert open_run(second.recipe, tmp_path / "second", "cpu").histories.keys() == {"teacher_nt", "teacher_at", "student"}
    moved = run_copy.rename(tmp_path / "moved")
    capsys.readouterr()
    train_recipe(recipe(moved), (tmp_path / "second").rename(tmp_path / "third"), device="cpu")
    assert capsys.readouterr().out.count("is trained already") == 2  # teacher AT is read


def test_a_start_that_is_none(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start"):
        tiny_recipe("teacher_at.epochs=0")
    cpu = torch.device("cpu")
    with pytest.raises(MissingFileError, match=r"student\.start: .*did you mean 'teacher_at'"):
        load_starts(tiny_recipe("student.start=teacher-at"), cpu)
    with pytest.raises(ConfigError, match=r"student\.start: 'cifar10' .* structure"):
        load_starts(tiny_recipe("student.start=cifar10"), cpu)
    with pytest.raises(MissingFileError, match=r"teacher_at\.start: .*nowhere"):
        load_starts(tiny_recipe(f"teacher_at.start={tmp_path}/nowhere"), cpu)


@pytest.mark.parametrize(("layer", "said"), [("layr3", r"student.feature_layer.*layer3"), ("layer2", "different sizes")])
def test_layers_that_do_not_fit_the_classifiers_are_found_before_the_training(
    layer: str, said: str, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    companion = "companions=[{network: {network: resnet, depth: 8, width: 6}, training: {epochs: 1}}]"
    settings = [companion, "student.features_weight=1", f"student.feature_layer={layer}"]
    with pytest.raises(ConfigError, match=said):
        train_recipe(tiny_recipe(*settings), tmp_path, device="cpu")
    assert not (tmp_path / "checkpoints" / "teacher_nt").exists()
