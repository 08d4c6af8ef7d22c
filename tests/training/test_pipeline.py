"""The stages together: what a run leaves behind, that it resumes after a kill, and what it refuses."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from purifiers import Purifier
from purifiers.device import find_device
from purifiers.errors import CheckpointError, ConfigError, MissingFileError
from purifiers.evaluation.evaluate import _peak
from purifiers.networks import ResNet
from purifiers.recipes.load import load_recipe, recipe_text
from purifiers.recipes.schema import Recipe
from purifiers.registry import fingerprint, save_network
from purifiers.runs import STATE_FILE, Run, open_run, student_config
from purifiers.storage import load_state, load_tensors, save_state
from purifiers.training.pipeline import train_recipe
from tests.conftest import TINY


def test_a_run_leaves_what_the_design_says(tiny_run: Run) -> None:
    folder = tiny_run.folder
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}
    stages = ["classifier", "teacher_nt", "teacher_at", "student", "student_at", "student_nt", "student_other"]
    files = ["config.json", "model.safetensors", "state.safetensors"]
    expected = {"recipe.yaml", "config.json", "model.safetensors"}
    assert names == expected | {f"checkpoints/{stage}/{file}" for stage in stages for file in files}
    assert load_recipe(folder / "recipe.yaml") == tiny_run.recipe
    images = torch.rand(2, 3, 16, 16)
    loaded = Purifier.from_pretrained(folder)
    torch.testing.assert_close(loaded(images), tiny_run.purifiers["student"](images))
    assert list(tiny_run.histories) == stages


def test_students_of_the_ablation_start_alike_and_end_apart(tiny_run: Run) -> None:
    first_losses = {tiny_run.histories[name][0]["mse"] for name in ("student", "student_at", "student_nt")}
    assert max(first_losses) - min(first_losses) < 0.01
    prints = {fingerprint(purifier) for purifier in tiny_run.purifiers.values()}
    assert len(prints) == len(tiny_run.purifiers) == 6


def test_the_other_reading_of_equation_5(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe("student.nt_teacher_input=clean")
    assert student_config(recipe.student, "student").nt_teacher_input == "clean"
    assert student_config(recipe.student, "student_other").nt_teacher_input == "adversarial"


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
    assert opened.classifier_name == "resnet20"


def test_a_second_run_trains_nothing_and_another_recipe_is_refused(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_recipe(tiny_recipe(), tmp_path, device="cpu")
    capsys.readouterr()
    train_recipe(tiny_recipe(), tmp_path, device="cpu")
    out = capsys.readouterr().out
    assert out.count("is trained already") == 4
    assert "epoch 1/" not in out
    with pytest.raises(CheckpointError, match=r"student\.epochs is 2 there, 3 now; .*--restart"):
        train_recipe(tiny_recipe("student.epochs=3", "evaluation.views=[blind]"), tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match=r"evaluation\.batch_size is \d+ there, 7 now"):  # training attacks are run in it
        train_recipe(tiny_recipe("evaluation.batch_size=7"), tmp_path, device="cpu")
    assert load_recipe(tmp_path / "recipe.yaml") == tiny_recipe()
    train_recipe(tiny_recipe("student.epochs=3"), tmp_path, device="cpu", restart=True)
    assert load_tensors(tmp_path / "model.safetensors")


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from purifiers.recipes.load import load_recipe
from purifiers.training.pipeline import train_recipe
train_recipe(load_recipe("digits", sys.argv[2:]), Path(sys.argv[1]), device="cpu")
"""


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), *TINY, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_killed_run_goes_on_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    longer = ("teacher_at.epochs=40", "student.epochs=6")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train_recipe(load_recipe("digits", [*TINY, *longer]), tmp_path / "whole", device="cpu")
    finally:
        torch.set_num_threads(threads)
    cut = tmp_path / "cut"
    with start(cut, *longer) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("teacher_at") and "epoch 3/40" in line:
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL, "it was killed in the middle"
    output, _ = (second := start(cut, *longer)).communicate()
    assert second.returncode == 0, output
    assert "teacher_nt       is trained already" in output
    assert "teacher_at       goes on after epoch" in output
    finished = Purifier.from_pretrained(cut)
    assert fingerprint(finished.network) == fingerprint(whole.purifiers["student"].network)


def test_a_deleted_cache_is_made_again_and_no_training_is_lost(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_recipe(tiny_recipe(), tmp_path, device="cpu")
    shutil.rmtree(tmp_path / "cache")
    capsys.readouterr()
    train_recipe(tiny_recipe(), tmp_path, device="cpu")
    assert capsys.readouterr().out.count("is trained already") == 4


def test_restart_discards_all_of_a_run_and_nothing_else(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Neither what is not ours, nor anything before the new command has proved usable."""
    foreign = tmp_path / "photos"
    (foreign / "cache").mkdir(parents=True)
    with pytest.raises(ConfigError, match="was not made by a run"):
        train_recipe(tiny_recipe(), foreign, device="cpu", restart=True)
    assert (foreign / "cache").is_dir()
    run = tmp_path / "run"
    train_recipe(tiny_recipe(), run, device="cpu")
    (run / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="cannot load a classifier"):
        train_recipe(tiny_recipe("classifier.source=nothing"), run, device="cpu", restart=True)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    train_recipe(tiny_recipe("seed=5"), run, device="cpu", restart=True)
    assert (run / "notes.txt").read_text() == "mine"


def test_a_discarding_that_was_cut_off_can_be_done_again(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_recipe(tiny_recipe(), tmp_path, device="cpu")
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "model.safetensors" and path.parent == tmp_path:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        train_recipe(tiny_recipe("seed=5"), tmp_path, device="cpu", restart=True)
    train_recipe(tiny_recipe("seed=5"), tmp_path, device="cpu", restart=True)
    assert load_recipe(tmp_path / "recipe.yaml").seed == 5


def test_networks_that_a_run_did_not_make_are_never_replaced(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    Purifier.from_pretrained("cifar10").save_pretrained(saved)
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ConfigError, match=r"holds a network that was not trained there \(config\.json\)"):
        train_recipe(tiny_recipe(), saved, device="cpu")
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    run = tmp_path / "run"
    shutil.copytree(tiny_run.folder, run)
    own = run / "checkpoints" / "classifier"
    with pytest.raises(ConfigError, match=r"--restart would discard the classifier .*classifier: copy it out of"):
        train_recipe(tiny_recipe(f"classifier.source={own}"), run, device="cpu", restart=True)
    assert (own / "model.safetensors").is_file()
    for start in (run, run / "checkpoints" / "student"):
        for stage in ("student", "teacher_at"):
            with pytest.raises(ConfigError, match=r"--restart would discard the purifier .*: copy it out of"):
                train_recipe(tiny_recipe(f"{stage}.start={start}"), run, device="cpu", restart=True)
    assert (run / "model.safetensors").is_file() and (run / "checkpoints" / "student" / "model.safetensors").is_file()


def test_other_images_are_another_run(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    for folder in ("a", "b"):
        for name in ("x", "y"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(20):
                pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=random)
                Image.fromarray(pixels.numpy()).save(tmp_path / folder / name / f"{i}.png")
    own = ["data.name=folder", "data.size=null", "data.limit=null"]
    train_recipe(tiny_recipe(*own, f"data.path={tmp_path / 'a'}"), tmp_path / "run", device="cpu")
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"data\.path is .*a there, .*b now"):
        train_recipe(tiny_recipe(*own, f"data.path={tmp_path / 'b'}"), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "recipe.yaml").read_text() == written


def test_a_classifier_that_guesses_is_pointed_out(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = ResNet(20, 10)
    torch.nn.init.zeros_(classifier.linear.weight)
    save_network(tmp_path / "guess", classifier)
    train_recipe(tiny_recipe(f"classifier.source={tmp_path / 'guess'}"), tmp_path / "run", device="cpu")
    assert "hardly better than guessing" in capsys.readouterr().out


def test_opening_what_is_not_trained(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no trained student"):
        open_run(tiny_recipe(), tmp_path, "cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "cpu:1", ""])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match=r"no device .* available: auto, cpu"):
        find_device(device)


def test_the_recipe_is_written_as_people_write_it(tiny_run: Run) -> None:
    paper = load_recipe("paper")
    assert "epsilon: 8/255" in recipe_text(paper)


def test_a_residual_teacher_nt_needs_no_training_and_is_the_identity(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="teacher NT starts from noise and has to learn"):
        tiny_recipe("teacher_nt.epochs=0")
    run = train_recipe(tiny_recipe("teacher_nt.epochs=0", "purifier.residual=true"), tmp_path, device="cpu")
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(run.purifiers["teacher_nt"](images), images)
    opened = open_run(run.recipe, tmp_path, "cpu")
    assert opened.histories.keys() == {"classifier", "teacher_at", "student"}
    assert _peak(opened)
    state = opened.checkpoint("teacher_at") / STATE_FILE
    trained = load_state(state)
    for other in ({"device": "cuda"}, {"threads": trained["threads"] + 1}):
        save_state(state, {**trained, **other})
        assert _peak(opened) is None


def test_a_student_that_starts_from_teacher_at(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    still = ("student.learning_rate=1e-12", "student.schedule=constant")  # where it starts is where it ends
    run = train_recipe(tiny_recipe("student.start=teacher_at", *still), tmp_path, device="cpu")
    network, teacher = (run.purifiers[name].network.state_dict() for name in ("student", "teacher_at"))
    for name, value in network.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(value, teacher[name], rtol=0, atol=1e-8)


def test_a_training_that_goes_on_from_purifiers_that_are_there(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    first = train_recipe(tiny_recipe(), tmp_path / "first", device="cpu")
    still = ("student.learning_rate=1e-12", "student.schedule=constant")
    there = (
        f"teacher_at.start={tmp_path}/first/checkpoints/teacher_at",
        "teacher_at.epochs=0",
        f"student.start={tmp_path}/first",
    )
    second = train_recipe(tiny_recipe("seed=1", *there, *still), tmp_path / "second", device="cpu")
    teachers = [run.purifiers["teacher_at"].network.state_dict() for run in (first, second)]
    assert all(torch.equal(value, teachers[1][name]) for name, value in teachers[0].items())
    students = [dict(run.purifiers["student"].network.named_parameters()) for run in (first, second)]
    for name, value in students[0].items():
        torch.testing.assert_close(value, students[1][name], rtol=0, atol=1e-8)
    assert open_run(second.recipe, tmp_path / "second", "cpu").histories.keys() == {"classifier", "teacher_nt", "student"}


def test_a_start_that_is_none(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a teacher that is trained already: name it with start"):
        tiny_recipe("teacher_at.epochs=0")
    with pytest.raises(
        MissingFileError, match=r"student\.start: there is no purifier at 'teacher-at'; did you mean 'teacher_at'"
    ):
        train_recipe(tiny_recipe("student.start=teacher-at"), tmp_path, device="cpu")
    with pytest.raises(ConfigError, match=r"student\.start: 'cifar10' has not the structure of the recipe's purifier"):
        train_recipe(tiny_recipe("student.start=cifar10"), tmp_path, device="cpu")
    with pytest.raises(MissingFileError, match=r"teacher_at\.start: there is no purifier at .*nowhere"):
        train_recipe(tiny_recipe(f"teacher_at.start={tmp_path}/nowhere"), tmp_path, device="cpu")
    assert not any(tmp_path.iterdir())
