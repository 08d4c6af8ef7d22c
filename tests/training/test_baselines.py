"""The baselines' training: losses against hand-worked values, who moves whom, and a sane result on digits."""

import math
import shutil
from copy import copy, deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.attacks.generate import generate
from purifiers.attacks.views import Features
from purifiers.baselines import NRP, SOAP, Adaptive, nrp
from purifiers.baselines.soap import Task
from purifiers.console import Deadline
from purifiers.data import to_float
from purifiers.errors import CheckpointError, ConfigError, OutOfTime
from purifiers.networks import ResNet
from purifiers.recipes.baseline_settings import TrainingNRP, TrainingSOAP
from purifiers.recipes.load import changed, load_recipe
from purifiers.recipes.schema import Recipe
from purifiers.registry import describe, load_network
from purifiers.runs import Run, open_run, prepare_baselines
from purifiers.training.baselines import JointTraining, NRPGame, nrp_losses, soap_losses
from purifiers.training.pipeline import train_recipe
from tests.conftest import Shared


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# The losses


class GreyNRP(nn.Module):
    """A game whose answers are given: purified images are grey, and the critic's scores are what is asked."""

    def forward(self, adversarial: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scores = images.new_tensor([1.0, -1.0])
        return torch.full_like(images, 0.5), scores, 0 * scores, 0 * scores


def test_nrps_losses_by_hand() -> None:
    images = torch.tensor([0.5, 0.7]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    config = TrainingNRP(epochs=1, adversarial_weight=2.0, pixel_weight=10.0, feature_weight=3.0)
    features = nn.Sequential(nn.Flatten(), nn.AvgPool1d(12))
    losses = nrp_losses(config, features)(GreyNRP(), torch.cat([images, images], 1), torch.zeros(2), random())
    # Scores of clean images 1 and -1, of purified ones 0 and 0: all means are 0.
    critic = ((math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2 + math.log(2)) / 2
    adversarial = (math.log(2) + (math.log1p(math.exp(1)) + math.log1p(math.exp(-1))) / 2) / 2
    assert losses["pixel"].item() == pytest.approx(0.04 / 2)
    assert losses["feature"].item() == pytest.approx(0.2 / 2)
    assert losses["critic"].item() == pytest.approx(critic)
    assert losses["adversarial"].item() == pytest.approx(adversarial)
    assert losses["loss"].item() == pytest.approx(2 * adversarial + 10 * 0.02 + 3 * 0.1 + critic)


def test_the_critic_learns_from_its_loss_alone_and_the_purifier_from_its_own() -> None:
    torch.manual_seed(0)
    game = NRPGame(NRP(blocks=1, features=4, growth=2), nrp.Critic(4))
    images = torch.rand(2, 3, 8, 8)
    _, clean, for_critic, for_purifier = game(images.flip(0), images)
    for loss, moved, still in (
        (nrp.relativistic_loss(clean, for_critic), game.critic, game.purifier),
        (nrp.relativistic_loss(for_purifier, clean.detach()), game.purifier, game.critic),
    ):
        game.zero_grad()
        loss.backward(retain_graph=True)
        assert all(parameter.grad is not None for parameter in moved.parameters())
        assert all(parameter.grad is None for parameter in still.parameters())


class Said(nn.Module):
    """Logits and answers that are given, and what it was shown."""

    def __init__(self, logits: Tensor, answer: Tensor) -> None:
        super().__init__()
        self.said = logits, answer

    def forward(self, images: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.shown = images, images if others is None else others
        return self.said


def small(task: Task) -> SOAP:
    return SOAP(ResNet(depth=8, num_classes=2, width=4), task=task)


def test_soaps_losses_by_hand() -> None:
    images, labels = torch.rand(4, 3, 6, 6, generator=random()), torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([[math.log(3), 0.0]] * 4)
    cross_entropy = (2 * math.log(4 / 3) + 2 * math.log(4)) / 4

    joint = Said(logits, torch.zeros(4, 2))
    losses = soap_losses(TrainingSOAP(epochs=1, alpha=2.0, noise=0.1), small("consistency"))(joint, images, labels, random())
    assert losses["classification"].item() == pytest.approx((cross_entropy + math.log(2)) / 2)
    assert losses["auxiliary"].item() == pytest.approx(math.log(3) ** 2 / 2)
    assert losses["loss"].item() == pytest.approx((cross_entropy + math.log(2)) / 2 + math.log(3) ** 2)
    assert (joint.shown[0] - joint.shown[1]).std().item() > 0.1  # two views
    grey = torch.full((4, 3, 16, 16), 0.5)
    soap_losses(TrainingSOAP(epochs=1, noise=0.1), small("consistency"))(joint, grey, labels, random())
    # A normal number without its negative half: mean 1 / sqrt(2 pi), variance 1/2 - 1 / (2 pi).
    added = joint.shown[1] - grey
    assert added.min().item() >= 0
    assert added.mean().item() == pytest.approx(0.1 / math.sqrt(2 * math.pi), rel=0.1)
    assert added.std().item() == pytest.approx(0.1 * math.sqrt(1 / 2 - 1 / (2 * math.pi)), rel=0.1)
    assert set(joint.shown[1].flatten().tolist()) & set(joint.shown[0].flatten().tolist())  # the same noise in both

    joint = Said(logits, torch.zeros(4, 4))
    losses = soap_losses(TrainingSOAP(epochs=1, alpha=0.5, noise=0), small("rotation"))(joint, images, labels, random())
    assert losses["loss"].item() == pytest.approx(cross_entropy + 0.5 * math.log(4))
    for turn, (shown, image) in enumerate(zip(joint.shown[0], images, strict=True)):
        assert torch.equal(shown, image.rot90(turn, (1, 2)))
    soap_losses(TrainingSOAP(epochs=1, noise=0.1), small("rotation"))(joint, grey, labels, random())
    assert (joint.shown[0] - grey).std().item() == pytest.approx(0.1, rel=0.1)

    joint = Said(logits, images + 0.3)
    losses = soap_losses(TrainingSOAP(epochs=1, noise=0.5), small("reconstruction"))(joint, images, labels, random())
    assert losses["loss"].item() == pytest.approx(cross_entropy + 0.09, rel=1e-5)
    assert torch.equal(joint.shown[0], images)
    joint = Said(logits, grey)
    soap_losses(TrainingSOAP(epochs=1, noise=0.1), small("reconstruction"))(joint, grey, labels, random())
    assert (joint.shown[1] - grey).std().item() == pytest.approx(0.1, rel=0.1)
    soap_losses(TrainingSOAP(epochs=1, noise=5), small("reconstruction"))(joint, grey, labels, random())
    assert (joint.shown[1].min().item(), joint.shown[1].max().item()) == (0, 1)


def test_the_joint_pass_gives_what_the_parts_give() -> None:
    torch.manual_seed(0)
    purifier = SOAP(ResNet(depth=8, width=4), task="rotation").eval()
    images, others = torch.rand(2, 2, 3, 8, 8)
    logits, answer = JointTraining(purifier)(images, others)
    torch.testing.assert_close(logits, purifier.classifier(images))
    torch.testing.assert_close(answer, purifier.auxiliary(others))
    torch.testing.assert_close(JointTraining(purifier)(images)[1], purifier.auxiliary(images))


def test_features_are_those_of_the_layer() -> None:
    torch.manual_seed(0)
    network = ResNet(depth=8, width=4).eval()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(Features(network, "layer3")(images), network.features(images).flatten(1))
    assert torch.equal(Features(network, None)(images), network(images))
    assert not network.layer3._forward_hooks
    with pytest.raises(ConfigError, match="no layer 'layr3'; did you mean 'layer3'"):
        Features(network, "layr3")


# Training


SMALL_SOAP = (
    "{{kind: soap, test_limit: 90, network: {{network: soap, task: {task}, classifier: {{network: resnet, depth: 8, width: 16}}, "
    "mirrored: false, step_size: 0.05, epsilon_step: 0.05}}, training: {{epochs: {epochs}, batch_size: 32, optimizer: adamw, "
    "learning_rate: 0.01, weight_decay: 0.01, schedule: one_cycle, crop: 1, alpha: 1, noise: {noise}}}}}"
)


@pytest.fixture(scope="session")
def digits(shared: Shared) -> Run:
    """The recipe's classifier and baselines on the digits, small; our own purifier does not matter here. Tests must not write
    into its folder."""
    overrides = [
        "data.limit=700",
        "data.test_limit=60",
        "purifier={network: cae, widths: [4], blocks: [1]}",
        *(f"{stage}.epochs=1" for stage in ("teacher_at", "teacher_nt", "student")),
        "training_attacks={FGSM: {kind: fgsm, epsilon: 0.1}}",
        "classifier.network={network: resnet, depth: 8, width: 8}",
        "classifier.training.epochs=5",
        "classifier.training.batch_size=32",
        "baselines.NRP.limit=320",
        "baselines.NRP.attack.num_steps=4",
        "baselines.NRP.network={network: nrp, block: dense, blocks: 1, features: 8, growth: 4}",
        "baselines.NRP.critic_width=8",
        "baselines.NRP.training.epochs=6",
        "baselines.NRP.training.batch_size=16",
    ]
    for task, epochs, noise in (("reconstruction", 4, 0.5), ("rotation", 11, 0), ("consistency", 4, 0.1)):
        overrides.append(f"baselines.SOAP, {task}={SMALL_SOAP.format(task=task, epochs=epochs, noise=noise)}")
    overrides.append("baselines.held={kind: untrained, around: 'SOAP, consistency', network: {network: soap, held: true}}")
    with shared("digits") as folder:
        run = train_recipe(load_recipe("digits", overrides), folder, device="cpu")
        prepare_baselines(run)
    return run


def copied(run: Run, recipe: Recipe, folder: Path) -> Run:
    """A copy of a run's folder that may be changed, opened with another recipe."""
    return open_run(recipe, shutil.copytree(run.folder, folder), "cpu")


def nrp_alone(recipe: Recipe, **changes: object) -> Recipe:
    """``recipe`` with NRP as its only baseline, changed by dotted key."""
    alone = changed(recipe, {"baselines": {"NRP": recipe.baselines["NRP"].model_dump(mode="json")}})
    return changed(alone, {f"baselines.NRP.{key}": value for key, value in changes.items()})


def test_a_game_that_was_stopped_resumes_bit_for_bit(tiny_run: Run, tmp_path: Path) -> None:
    recipe = nrp_alone(tiny_run.recipe, **{"training.epochs": 3, "training.schedule": "one_cycle"})
    whole, parts = (copied(tiny_run, recipe, tmp_path / name) for name in ("whole", "parts"))
    prepare_baselines(whole)

    class AfterOneEpoch(Deadline):
        def check(self, done: str, next_seconds: float = 0.0, *, finished: bool = True) -> None:
            if done == "epoch 1/3 of baseline-nrp":
                raise OutOfTime(done)

    parts.deadline = AfterOneEpoch()
    with pytest.raises(OutOfTime):
        prepare_baselines(parts)
    again = open_run(recipe, tmp_path / "parts", "cpu")
    prepare_baselines(again)
    images = to_float(whole.images("test").images[:4])
    assert torch.equal(whole.baselines["NRP"](images), again.baselines["NRP"](images))


def test_a_baseline_may_be_trained_on_more_images_than_ours(digits: Run) -> None:
    run = copy(digits)
    run.recipe = changed(digits.recipe, {"data.limit": 30})
    run.splits = {}
    assert [len(run.drawn(limit)) for limit in (None, 20, 50)] == [30, 20, 50]


def test_what_was_trained_otherwise_is_not_taken_for_what_the_recipe_asks(digits: Run) -> None:
    for key, value in {
        "training.epochs": 9, "training.learning_rate": 0.5, "network.growth": 2, "attack.epsilon": 0.3, "limit": 50,
    }.items():  # fmt: skip
        recipe = changed(digits.recipe, {f"baselines.NRP.{key}": value, "baselines.SOAP, rotation.test_limit": 7})
        opened = open_run(recipe, digits.folder, "cpu")
        prepare_baselines(opened, train=False)
        assert "NRP" not in opened.baselines and "SOAP, rotation" in opened.baselines


def test_a_layer_that_is_not_there_is_reported_with_its_key(tiny_run: Run) -> None:
    run = copy(tiny_run)
    run.recipe = nrp_alone(tiny_run.recipe, feature_layer="layr3")
    with pytest.raises(ConfigError, match=r"baselines\.NRP\.feature_layer: .* did you mean 'layer3'"):
        prepare_baselines(run)
    run.recipe, other = nrp_alone(tiny_run.recipe, feature_layer="unused"), deepcopy(tiny_run.classifier)
    other.unused = nn.Identity()
    run.classifiers = {"classifier": other}
    with pytest.raises(ConfigError, match=r"feature_layer: the layer 'unused' returned nothing"):
        prepare_baselines(run)


def right(run: Run, title: str, count: int = 50) -> tuple[float, float, float]:
    """Of the first images: share right when clean and purified; attacked alone; attacked and purified."""
    purifier = run.baselines[title]
    classifier = purifier.network.classifier if isinstance(purifier.network, SOAP) else run.classifier
    data = run.images("test").subset(torch.arange(count))
    attacked = generate(run.recipe.evaluation.attacks["PGD"], classifier, data, cache=run.cache).images

    def share(images: Tensor) -> float:
        with torch.no_grad():
            return (classifier(images).argmax(1) == data.labels).float().mean().item()

    with torch.no_grad():
        return share(purifier(to_float(data.images))), share(attacked), share(purifier(attacked))


def test_nrp_purifies_digits(digits: Run) -> None:
    clean, attacked, purified = right(digits, "NRP")
    assert clean > 0.9 and attacked < 0.1 and purified > 0.8


@pytest.mark.parametrize(
    ("task", "kept", "gain"),
    [("reconstruction", 0.6, 0.2), ("rotation", 0.4, 0.1), ("consistency", 0.75, 0.1)],
)
def test_soap_purifies_digits(digits: Run, task: str, kept: float, gain: float) -> None:
    clean, attacked, purified = right(digits, f"SOAP, {task}")
    assert clean > kept and purified > attacked + gain


def test_the_tasks_are_learned(digits: Run) -> None:
    images = to_float(digits.images("test").images)
    with torch.no_grad():
        rotation = digits.baselines["SOAP, rotation"].network
        assert isinstance(rotation, SOAP)
        guessed = [(rotation.auxiliary(images.rot90(turn, (2, 3))).argmax(1) == turn).float().mean() for turn in range(4)]
        assert sum(guessed) / 4 > 0.8  # a 0, an 8 and a 1 look alike upside down
        reconstruction = digits.baselines["SOAP, reconstruction"].network
        assert isinstance(reconstruction, SOAP)
        assert reconstruction.error(images).mean() < F.mse_loss(images, images.mean().expand_as(images)) / 2


def test_wrappers_go_around_the_trained_network(digits: Run) -> None:
    network = digits.baselines["ours, adaptive"].network
    assert isinstance(network, Adaptive)
    student = digits.purifiers["student"].network.state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in network.base.state_dict().items())


def test_a_trained_soap_once_more_with_other_arguments(digits: Run) -> None:
    first, held = (digits.baselines[title].network for title in ("SOAP, consistency", "held"))
    assert isinstance(first, SOAP) and isinstance(held, SOAP)
    assert held.config["held"] and not first.config["held"]
    assert {**describe(held), "held": False} == describe(first)
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in held.state_dict().items())
    for around, network, told in (
        ("student", "{network: soap, held: true}", "'student' is not one"),
        ("SOAP, consistency", "{network: soap, task: rotation}", "weights of 'SOAP, consistency' do not fit"),
    ):
        override = f"baselines.held={{kind: untrained, around: '{around}', network: {network}}}"
        run = open_run(load_recipe(digits.folder / "recipe.yaml", [override]), digits.folder, "cpu")
        with pytest.raises(ConfigError, match=told):
            prepare_baselines(run, train=False)


def test_what_is_trained_is_reused_and_can_be_loaded(digits: Run) -> None:
    opened = open_run(digits.recipe, digits.folder, "cpu")
    prepare_baselines(opened, train=False)
    assert list(opened.baselines) == list(digits.recipe.baselines)
    assert opened.histories["baseline-nrp"] == digits.histories["baseline-nrp"]
    images = to_float(digits.images("test").images[:2])
    for title in ("NRP", "SOAP, rotation", "ours, adaptive"):
        assert torch.equal(opened.baselines[title](images), digits.baselines[title](images))
    saved = load_network(digits.checkpoint("baseline-soap-rotation"))
    trained = digits.baselines["SOAP, rotation"].network.state_dict()
    assert isinstance(saved, SOAP) and all(torch.equal(value, trained[name]) for name, value in saved.state_dict().items())


def test_what_is_not_trained_is_left_out_with_what_is_around_it(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around = {"kind": "untrained", "around": "NRP", "network": {"network": "noisy"}}
    run = copied(tiny_run, changed(tiny_run.recipe, {"baselines.NRP, dynamic": around}), tmp_path / "run")
    prepare_baselines(run, train=False)
    assert not {"NRP", "NRP, dynamic"} & set(run.baselines) and "JPEG" in run.baselines
    assert "NRP, dynamic     is left out" in capsys.readouterr().out


def test_a_training_of_other_baselines_resumes_beside_those_that_are_there(tiny_run: Run, tmp_path: Path) -> None:
    run = copied(tiny_run, tiny_run.recipe, tmp_path / "run")
    with pytest.raises(OutOfTime):
        run.deadline = Deadline(1e-9)
        prepare_baselines(run)
    run.deadline = Deadline()
    prepare_baselines(run)
    assert set(run.baselines) == set(run.recipe.baselines)
    run.recipe = nrp_alone(tiny_run.recipe, **{"training.pixel_weight": 1})
    with pytest.raises(CheckpointError, match="another recipe"):
        prepare_baselines(run)
