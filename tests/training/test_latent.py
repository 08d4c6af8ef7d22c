"""A robust latent first: what each of its two trainings moves, and that a whole run starts from it and resumes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from purifiers.errors import ConfigError
from purifiers.evaluation.evaluate import evaluate_run
from purifiers.networks import CAE
from purifiers.recipes.schema import Recipe
from purifiers.recipes.training_settings import TeacherAT
from purifiers.registry import fingerprint, load_network
from purifiers.runs import Run, student_configs
from purifiers.training import latent
from purifiers.training.adversarial_data import Panel
from purifiers.training.latent import DecoderAlone, EncoderWithHead
from purifiers.training.objectives import StageLosses, at_losses
from purifiers.training.pipeline import train_recipe

ROBUST = (
    "purifier.skip_every=0",
    "training_attacks={}",
    "latent.encoder={epochs: 1, batch_size: 32, attack: {kind: pgd, epsilon: 0.1, step_size: 0.12, num_steps: 1}}",
    "latent.decoder={epochs: 1, batch_size: 32, clean_share: 1, classification_weight: 1, adversarial_weight: 0}",
    "teacher_at.attack={kind: pgd, epsilon: 0.1, step_size: 0.12, num_steps: 1}",
    "student.attack={kind: pgd, epsilon: 0.1, step_size: 0.12, num_steps: 1}",
    "student.start=teacher_at",
    "baselines={}",
)


def moved(network: nn.Module, loss: torch.Tensor) -> set[str]:
    """The names of the parameters that the loss reaches."""
    names, parameters = zip(*[pair for pair in network.named_parameters() if pair[1].requires_grad], strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}


def test_the_first_moves_the_encoder_and_the_second_the_decoder() -> None:
    purifier, images = CAE(widths=[4, 6], blocks=[1, 2], skip_every=0), torch.rand(4, 3, 8, 8)
    probe = EncoderWithHead(purifier, nn.Linear(6, 10)).train()
    assert probe(images).shape == (4, 10)
    reached = moved(probe, probe(images).square().sum())
    assert {".".join(name.split(".")[:2]) for name in reached} == {"purifier.encoder", "head.weight", "head.bias"}
    alone = DecoderAlone(purifier).train()
    before = {name: value.clone() for name, value in purifier.encoder.state_dict().items()}
    reached = moved(alone, alone(images).square().sum())
    assert all(name.startswith("purifier.decoder.") for name in reached) and reached
    after = purifier.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # batch statistics too


def test_what_the_encoder_says_of_the_classes_is_trained_with_it_and_told_by_the_decoder() -> None:
    purifier, images = CAE(widths=[4, 6], blocks=[1, 2], skip_every=0, classes=10), torch.rand(4, 3, 8, 8)
    assert purifier.verdict is not None
    probe = EncoderWithHead(purifier)
    torch.testing.assert_close(probe.eval()(images), purifier.verdict.logits(purifier.latent(images)))
    reached = moved(probe.train(), probe(images).square().sum())
    assert {".".join(name.split(".")[:3]) for name in reached if "encoder" not in name} == {"purifier.verdict.head"}
    places = [value.data_ptr() for value in probe.state_dict().values()]
    assert len(set(places)) == len(places)  # a moving average follows each once
    reached = moved(alone := DecoderAlone(purifier).train(), alone(images).square().sum())
    assert {name for name in reached if "decoder" not in name} == {"purifier.verdict.vectors.weight"}


def test_a_run_with_classes_may_end_with_its_decoder(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teachers and student that are not trained are the purifier of the group latent, whose decoder learns what the encoder says."""
    labellers = []

    def recorded(config: TeacherAT, panel: Panel, labeller: nn.Module | None = None) -> StageLosses:
        labellers.append(labeller)
        return at_losses(config, panel, labeller)

    monkeypatch.setattr(latent, "at_losses", recorded)
    untrained = ["teacher_nt.epochs=0", "student.teachers=[AT]", "teacher_at.epochs=0", "student.epochs=0"]
    source = f"classifier.source={tiny_run.checkpoint('classifier')}"
    recipe = tiny_recipe(*ROBUST, *untrained, "purifier.classes=10", source)
    run = train_recipe(recipe, tmp_path / "run", device="cpu", ablation=True)
    encoder, decoder = (load_network(run.checkpoint(stage)) for stage in ("latent_encoder", "latent_decoder"))
    assert isinstance(encoder, CAE) and isinstance(decoder, CAE) and encoder.verdict and decoder.verdict
    assert fingerprint(run.purifiers["student"].network) == fingerprint(decoder)
    assert fingerprint(encoder.verdict.head) == fingerprint(decoder.verdict.head)
    images = torch.rand(3, 3, 8, 8)
    (labeller,) = labellers
    torch.testing.assert_close(labeller(images), encoder.verdict.logits(encoder.latent(images)))
    assert {record.purifier for record in evaluate_run(run)[0].records} == {"student"}
    shutil.rmtree(run.checkpoint("latent_decoder"))
    again = train_recipe(recipe, tmp_path / "run", device="cpu")
    assert fingerprint(again.purifiers["student"]) == fingerprint(run.purifiers["student"])
    with pytest.raises(ConfigError, match=r"purifier\.classes is 3, but the images have 10"):
        train_recipe(tiny_recipe(*ROBUST, *untrained, "purifier.classes=3", source), tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists()


def test_an_untrained_teacher_nt_teaches_no_student_of_table_2(tiny_recipe: Callable[..., Recipe]) -> None:
    recipe = tiny_recipe(*ROBUST, "teacher_nt.epochs=0", "student.teachers=[AT]")
    assert list(student_configs(recipe, ablation=True)) == ["student"]
    assert "student_nt" in student_configs(tiny_recipe(*ROBUST), ablation=True)


def test_a_run_starts_from_the_latent_and_resumes_between_its_stages(
    tiny_recipe: Callable[..., Recipe], tiny_run: Run, tmp_path: Path
) -> None:
    short = [f"{stage}.epochs=1" for stage in ("teacher_nt", "teacher_at", "student")]
    recipe = tiny_recipe(*ROBUST, *short, f"classifier.source={tiny_run.checkpoint('classifier')}")
    run = train_recipe(recipe, tmp_path / "run", device="cpu")
    assert list(run.histories) == ["teacher_nt", "latent_encoder", "latent_decoder", "teacher_at", "student"]
    encoder, decoder = (load_network(run.checkpoint(stage)) for stage in ("latent_encoder", "latent_decoder"))
    assert fingerprint(encoder.encoder) == fingerprint(decoder.encoder)  # type: ignore[arg-type]
    assert fingerprint(encoder.decoder) != fingerprint(decoder.decoder)  # type: ignore[arg-type]
    # As after a kill between the stages: the missing ones are trained again, to the same weights.
    for stage in ("latent_decoder", "teacher_at", "student"):
        shutil.rmtree(run.checkpoint(stage))
    again = train_recipe(recipe, tmp_path / "run", device="cpu")
    assert fingerprint(again.purifiers["student"]) == fingerprint(run.purifiers["student"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("purifier.skip_every=2", "carry perturbations"),
        ("purifier.residual=true", "carry perturbations"),
        ("student.attack=null", "training_attacks is empty, and student has neither an attack of its own"),
        ("latent.decoder.clean_share=0", "training_attacks is empty, and latent.decoder has neither an attack of its own"),
        ("latent.encoder.atack=1", "did you mean 'attack'"),
        ("latent.decoder.epochs=0", "decoder.epochs must be > 0"),
        ("teacher_nt.epochs=0", "student.teachers names NT"),
    ],
)
def test_recipes_that_cannot_work_are_refused(tiny_recipe: Callable[..., Recipe], override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny_recipe(*ROBUST, override)


def test_a_start_beside_the_latent_is_refused(tiny_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError, match="with a group latent, teacher AT starts"):
        tiny_recipe(*ROBUST, "teacher_at.start=cifar10")
    with pytest.raises(ConfigError, match="the decoder starts from the encoder that is trained before it"):
        tiny_recipe(*ROBUST, "latent.decoder.start=cifar10")
