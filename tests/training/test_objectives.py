"""What each stage feeds its losses: pairs split and scaled, the classifier asked only where it is wanted."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purifiers.attacks import PGD
from purifiers.networks import CAE
from purifiers.recipes.training_settings import OnAttacked, Student, Supervised, TeacherAT
from purifiers.training import distributed
from purifiers.training.adversarial_data import Panel
from purifiers.training.loop import make_fabric
from purifiers.training.losses import classification_loss, output_guidance
from purifiers.training.objectives import _showing, at_losses, attacked, classifier_losses, student_losses
from tests.conftest import Linear

SHAPE = (3, 4, 4)
COUNT = 400


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(COUNT, *SHAPE, generator=generator)
    return images, images + 0.1 * torch.randn(COUNT, *SHAPE, generator=generator).sign()


def draw(**options: float) -> tuple[Tensor, Tensor]:
    images, adversarial = pairs()
    config = OnAttacked(epochs=1, **options)  # type: ignore[arg-type]
    return attacked(torch.cat([images, adversarial], 1), config, torch.Generator().manual_seed(3))


def test_by_default_pairs_are_only_split() -> None:
    images, adversarial = pairs()
    assert torch.equal(draw()[0], images)
    assert torch.equal(draw()[1], adversarial)


def test_strengths_fill_their_range_and_some_images_stay_clean() -> None:
    images, result = draw(strength_low=0.5, strength_high=1.5, clean_share=0.25)
    assert torch.equal(images, pairs()[0])
    strength = (result - images).abs().amax(dim=(1, 2, 3)) / 0.1
    clean = strength == 0
    assert 0.18 < clean.float().mean() < 0.32
    assert strength[~clean].min() == pytest.approx(0.5, abs=0.02)
    assert strength[~clean].max() == pytest.approx(1.5, abs=0.02)
    spread = (result - images).abs().flatten(1)
    torch.testing.assert_close(spread.amin(1), spread.amax(1), rtol=0, atol=1e-5)  # one strength for a whole image
    assert torch.equal(result, draw(strength_low=0.5, strength_high=1.5, clean_share=0.25)[1])


def test_results_stay_images() -> None:
    for options in ({"strength_high": 20.0}, {"noise": 1.0}):
        _, result = draw(**options)
        assert result.min() == 0
        assert result.max() == 1


def test_noise_comes_on_top_of_every_image_anew_each_time() -> None:
    images, adversarial = pairs()
    batch, generator = torch.cat([images, adversarial], 1), torch.Generator().manual_seed(3)
    for config, around in (
        (OnAttacked(epochs=1, noise=0.05, clean_share=1.0), images),
        (OnAttacked(epochs=1, noise=0.05), adversarial),
    ):
        (clean, first), (_, second) = (attacked(batch, config, generator) for _ in range(2))
        assert torch.equal(clean, images)
        assert not torch.equal(first, second)
        noise = (first - around)[(first > 0) & (first < 1)]
        assert noise.std().item() == pytest.approx(0.05, rel=0.05)
        assert noise.mean().item() == pytest.approx(0, abs=0.005)


def test_guidance_is_what_its_formulas_say() -> None:
    random = np.random.default_rng(0)
    purified, clean, labels = random.normal(size=(5, 7)), random.normal(size=(5, 7)), random.integers(0, 7, 5)
    shares = np.exp(purified) / np.exp(purified).sum(1, keepdims=True)
    expected = -np.log(shares[np.arange(5), labels]).mean()
    found = classification_loss(torch.from_numpy(purified), torch.from_numpy(labels))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    found = output_guidance(torch.from_numpy(purified), torch.from_numpy(clean))
    assert found.item() == pytest.approx(np.abs(purified - clean).mean(), rel=1e-12)


def test_smoothed_labels_and_trades_are_what_their_formulas_say() -> None:
    random = np.random.default_rng(0)
    attacked, clean, labels = random.normal(size=(5, 7)), random.normal(size=(5, 7)), random.integers(0, 7, 5)
    logs = [one - np.log(np.exp(one).sum(1, keepdims=True)) for one in (attacked, clean)]
    targets = 0.9 * np.eye(7)[labels] + 0.1 / 7
    smoothed = [-(targets * log).sum(1).mean() for log in logs]
    divergence = (np.exp(logs[1]) * (logs[1] - logs[0])).sum(1).mean()
    given = [torch.from_numpy(one) for one in (attacked, labels, clean)]
    assert classification_loss(*given[:2], label_smoothing=0.1).item() == pytest.approx(smoothed[0], rel=1e-12)
    found = classification_loss(*given, trades=6.0, label_smoothing=0.1)
    assert found.item() == pytest.approx(smoothed[1] + 6 * divergence, rel=1e-12)


class Refusing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the classifier was asked")


class Same(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


def test_the_paper_s_student_never_asks_the_classifier() -> None:
    batch = torch.cat(pairs(), 1)
    compute = student_losses(Student(epochs=1), {"AT": Same()}, Panel([Refusing()]))
    found = compute(Same(), batch, torch.zeros(COUNT, dtype=torch.int64), torch.Generator())
    assert set(found) == {"loss", "mse", "distillation"}
    guided = Student(epochs=1, logits_weight=0.1)
    with pytest.raises(AssertionError, match="was asked"):
        student_losses(guided, {"AT": Same()}, Panel([Refusing()]))(Same(), batch, torch.zeros(COUNT), torch.Generator())


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_the_total_is_the_weighted_sum_of_the_recorded_parts(kind: str) -> None:
    images, adversarial = pairs()
    classifier, labels = nn.Sequential(), torch.arange(COUNT) % 5
    classifier.add_module("flat", nn.Flatten())
    classifier.add_module("head", Linear(5, (48, 1, 1)))
    guidance = {"classification_weight": 0.5, "logits_weight": 0.3, "features_weight": 0.2, "feature_layer": "flat"}
    if kind == "teacher":
        at = TeacherAT(epochs=1, reconstruction_weight=30.0, adversarial_weight=2.0, **guidance)  # type: ignore[arg-type]
        compute, weights = (
            at_losses(at, Panel([classifier])),
            {"mse": 30.0, "adversarial": 1.0},
        )  # 2.0 is inside that part
    else:
        config = Student(epochs=1, beta=30.0, gamma=0.7, **guidance)  # type: ignore[arg-type]
        compute = student_losses(config, {"AT": Same(), "NT": Same()}, Panel([classifier]))
        weights = {"mse": 30.0, "distillation": 0.7}
    found = compute(Same(), torch.cat([images, adversarial], 1), labels, torch.Generator())
    weights |= {"classification": 0.5, "logits": 0.3, "features": 0.2}
    assert set(found) == {"loss", *weights}
    total = sum(weight * found[name].item() for name, weight in weights.items())
    assert found["loss"].item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(found["mse"], (adversarial - images).square().mean())
    expected = nn.functional.cross_entropy(classifier(adversarial), labels)
    torch.testing.assert_close(found["classification"], expected)
    torch.testing.assert_close(found["features"], (adversarial - images).abs().mean())  # of a layer that flattens the image


@pytest.mark.parametrize("shown", ["adversarial", "clean"])
def test_teacher_nt_sees_what_the_recipe_says(shown: str) -> None:
    images, adversarial = pairs()
    seen = []

    class Recording(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            seen.append(given)
            return given

    config = Student(epochs=1, nt_teacher_input=shown)  # type: ignore[arg-type]
    compute = student_losses(config, {"NT": Recording()}, Panel([Refusing()]))
    compute(Same(), torch.cat([images, adversarial], 1), torch.zeros(COUNT), torch.Generator())
    assert torch.equal(seen[0], images if shown == "clean" else adversarial)


class Shifting(nn.Module):
    """A purifier with a weight, in training mode, that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.9))
        self.shown: list[tuple[Tensor, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append((images.detach(), self.training))
        return images * self.weight


def worst_of(classifier: Linear, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Of a linear classifier of two classes the worst perturbation is known: against the sign of the margin's gradient."""
    direction = (classifier.weight[1 - labels] - classifier.weight[labels]).sign().view_as(images)
    return images + epsilon * direction


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_an_attack_of_a_training_s_own_is_made_on_the_whole(kind: str) -> None:
    """The batch holds no adversarial examples; those that the purifier is shown are the optimal ones through both."""
    (images, _), labels = pairs(), torch.arange(COUNT) % 2
    classifier, purifier = Linear(2, SHAPE), Shifting().train()
    attack = {"kind": "pgd", "epsilon": 0.05, "step_size": 0.1, "num_steps": 1}
    panel = Panel([classifier.requires_grad_(False)])
    if kind == "teacher":
        compute = at_losses(TeacherAT(epochs=1, attack=attack, classification_weight=1), panel)  # type: ignore[arg-type]
    else:
        config = Student(epochs=1, attack=attack, classification_weight=1)  # type: ignore[arg-type]
        compute = student_losses(config, {"AT": Same()}, panel)
    found = compute(purifier, images, labels, torch.Generator().manual_seed(0))
    shown, training = purifier.shown[-1]
    torch.testing.assert_close(shown, worst_of(classifier, images, labels, 0.05))
    assert training and not purifier.shown[0][1]  # attacked in evaluation mode, updated in training mode
    assert purifier.weight.requires_grad
    expected = nn.functional.cross_entropy(classifier(shown * 0.9), labels)
    torch.testing.assert_close(found["classification"], expected)
    (gradient,) = torch.autograd.grad(found["loss"], purifier.weight)
    assert gradient.isfinite() and gradient != 0


def checkerboard(count: int, channels: int = 3, size: int = 8) -> Tensor:
    """Values of 0 and 1 in turn along both axes."""
    turns = (torch.arange(size)[:, None] + torch.arange(size)) % 2
    return turns.float().expand(count, channels, size, size)


class Contrast(nn.Module):
    """A classifier of two classes by the finest pattern: the logit of the second is 4 times the spread of the pixels."""

    def forward(self, images: Tensor) -> Tensor:
        spread = 4 * images.flatten(1).std(1)
        return torch.stack([torch.zeros_like(spread), spread], dim=1)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_guides_may_be_shown_blurred_and_shifted_images(kind: str) -> None:
    """A fine pattern does not survive the blur, the pixel loss is of the image as it is, and no blur is drawn twice."""
    batch, labels, panel = checkerboard(64, 6), torch.ones(64, dtype=torch.int64), Panel([Contrast()])

    def classification(seed: int, **keys: float) -> float:
        if kind == "teacher":
            compute = at_losses(TeacherAT(epochs=1, classification_weight=1, adversarial_weight=0, **keys), panel)  # type: ignore[arg-type]
        else:
            compute = student_losses(Student(epochs=1, classification_weight=1, **keys), {"AT": Same()}, panel)  # type: ignore[arg-type]
        found = compute(Same(), batch, labels, torch.Generator().manual_seed(seed))
        assert found["mse"] == 0
        return found["classification"].item()

    plain, blur = classification(0), classification(0, guide_blur=2.0)
    assert plain < 0.15 and blur > 0.3
    assert classification(0, guide_blur=2.0) == blur != classification(1, guide_blur=2.0)
    assert classification(0, guide_shift=2) != plain  # over a black border


def test_each_step_shows_images_anew_and_every_process_its_part_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OnAttacked(epochs=1, classification_weight=1, guide_blur=1.5, guide_shift=2)
    images, generator = torch.rand(7, 3, 6, 6), torch.Generator().manual_seed(0)
    shown = _showing(config, 7, generator)
    whole, state = shown(images), generator.get_state()
    assert torch.equal(shown(images[:4]), whole[:4])  # the same for all that is compared in a step
    assert not torch.equal(_showing(config, 7, generator)(images), whole)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    for number in range(3):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        own = torch.Generator().manual_seed(0)
        assert torch.equal(_showing(config, 7, own)(images[number::3]), whole[number::3])
        assert torch.equal(own.get_state(), state)


def test_what_classifiers_are_shown_is_refused_where_nothing_asks_them() -> None:
    with pytest.raises(ValueError, match="no weight of a loss asks them"):
        Student(epochs=1, guide_blur=1)
    assert TeacherAT(epochs=1, guide_shift=1).guide_shift == 1  # equation 2 asks them


class Told(nn.Module):
    """Logits that name one class, whatever the image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.eye(3)[2].expand(len(images), 3)


def test_a_purifier_may_learn_what_another_network_says_instead_of_the_label() -> None:
    images, classifier = pairs()[0], Linear(3, SHAPE)
    config = TeacherAT(epochs=1, clean_share=1, classification_weight=1, adversarial_weight=0)
    compute = at_losses(config, Panel([classifier]), Told())
    found = compute(Same(), images, torch.zeros(COUNT, dtype=torch.int64), torch.Generator())
    expected = nn.functional.cross_entropy(classifier(images), torch.full((COUNT,), 2))
    torch.testing.assert_close(found["classification"], expected)


def test_the_encoder_learns_from_attacks_on_itself() -> None:
    images, labels = pairs()[0], torch.arange(COUNT) % 2
    classifier = Linear(2, SHAPE)
    attack = PGD(epsilon=0.05, step_size=0.1, num_steps=1)
    compute = classifier_losses(Supervised(epochs=1, attack=attack))
    found = compute(classifier, images, labels, torch.Generator().manual_seed(0))["loss"]
    torch.testing.assert_close(
        found, nn.functional.cross_entropy(classifier(worst_of(classifier, images, labels, 0.05)), labels)
    )


def test_trades_learns_from_clean_images_too() -> None:
    images, labels = pairs()[0], torch.arange(COUNT) % 2
    classifier, attack = Linear(2, SHAPE), PGD(epsilon=0.05, step_size=0.1, num_steps=1)
    adversarial = worst_of(classifier, images, labels, 0.05)
    compute = classifier_losses(Supervised(epochs=1, attack=attack, trades=6.0, label_smoothing=0.1))
    found = compute(classifier, images, labels, torch.Generator().manual_seed(0))["loss"]
    expected = classification_loss(classifier(adversarial), labels, classifier(images), 6.0, 0.1)
    torch.testing.assert_close(found, expected)
    purifier_losses = at_losses(TeacherAT(epochs=1, classification_weight=1.0, trades=6.0), Panel([classifier]))
    found = purifier_losses(Same(), torch.cat([images, adversarial], 1), labels, torch.Generator())["classification"]
    torch.testing.assert_close(found, classification_loss(classifier(adversarial), labels, classifier(images), 6.0))


def test_a_weight_perturbation_takes_the_gradient_elsewhere() -> None:
    """Of a linear classifier by hand: its weights move by a twentieth of their norm along the gradient, its bias does not."""
    images, labels = pairs()[0], torch.arange(COUNT) % 2
    classifier, attack = Linear(2, SHAPE), PGD(epsilon=1e-7, step_size=1e-7, num_steps=1)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    compute = classifier_losses(Supervised(epochs=1, attack=attack, weight_perturbation=0.05))
    compute(classifier, images, labels, torch.Generator())["loss"].backward()
    found = {name: weight.grad for name, weight in classifier.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    moved = Linear(2, SHAPE)
    moved.load_state_dict(before)
    nn.functional.cross_entropy(moved(images), labels).backward()
    with torch.no_grad():
        for weight in moved.parameters():
            gradient = weight.grad
            assert gradient is not None
            weight += 0.05 * weight.norm() / gradient.norm() * gradient * (weight.ndim > 1)
    moved.zero_grad()
    nn.functional.cross_entropy(moved(images), labels).backward()
    for name, weight in moved.named_parameters():
        torch.testing.assert_close(found[name], weight.grad)


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_weight_perturbation_raises_the_loss_of_a_purifier_in_training(kind: str, precision: Any) -> None:
    classifier, labels, batch = Linear(5, SHAPE), torch.arange(COUNT) % 5, torch.cat(pairs(), 1)
    network = CAE(widths=[4, 6], blocks=[1, 1])
    panel, wrapped = Panel([classifier], precision), make_fabric(torch.device("cpu"), precision).setup(network)
    found = []
    for share in (0.0, 0.05):
        guidance = {"classification_weight": 1.0, "weight_perturbation": share}
        compute = (
            at_losses(TeacherAT(epochs=1, **guidance), panel)
            if kind == "teacher"
            else student_losses(Student(epochs=1, **guidance), {"NT": Same()}, panel)
        )
        found.append(compute(wrapped, batch, labels, torch.Generator())["loss"])
        assert int(network.encoder[0][1].num_batches_tracked) == len(found)  # the first pass leaves the statistics alone
    assert found[1] > found[0]
    make_fabric(torch.device("cpu"), precision).backward(found[1])
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters() if weight.ndim > 1)


def test_without_adversarial_examples_images_come_as_they_are() -> None:
    images, _ = pairs()
    first, second = attacked(images, OnAttacked(epochs=1, clean_share=1), torch.Generator())
    assert torch.equal(first, images) and torch.equal(second, images)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_attacks_in_training_leave_the_wrapped_network_as_it_was(precision: str) -> None:
    """What Fabric returns may only be differentiated by Fabric; the attack sees the network within, and moves no statistics."""
    fabric = make_fabric(torch.device("cpu"), precision)  # type: ignore[arg-type]
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Sigmoid())
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
    model.train()
    images, labels = pairs()[0], torch.arange(COUNT) % 2
    attack = PGD(epsilon=0.05, step_size=0.02, num_steps=3)
    config = TeacherAT(epochs=1, attack=attack, classification_weight=1)
    compute = at_losses(config, Panel([Linear(2, SHAPE).requires_grad_(False)], precision))  # type: ignore[arg-type]
    found = compute(model, images, labels, torch.Generator().manual_seed(0))
    assert network[1].num_batches_tracked == 1  # of the one pass that learns
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    fabric.backward(found["loss"])
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer.step()


def test_what_the_teacher_made_once_is_what_it_makes_in_every_step() -> None:
    class Mean(nn.Module):  # maps an even image to itself, and is linear: its correction grows with the perturbation
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3), keepdim=True).expand_as(images)

    adversarial = pairs()[1]
    images = torch.full_like(adversarial, 0.5)
    batch = torch.cat([images, adversarial, images, Mean()(adversarial), Mean()(images)], 1)
    again = torch.cat([batch[:, :6], batch[:, 9:12], batch[:, 6:9], batch[:, 12:]], 1)  # two rounds, the second is clean
    student, panel, labels = nn.Conv2d(3, 3, 1), Panel([Linear(10, SHAPE)]), torch.zeros(COUNT, dtype=torch.int64)
    teachers = {"AT": Mean(), "NT": nn.Identity()}
    options = {"epochs": 1, "strength_low": 0.5, "strength_high": 1.2, "clean_share": 0.2}
    found = {}
    for once, shown in ((False, batch[:, :9]), (True, again)):
        losses = student_losses(Student(**options, teacher_once=once), teachers, panel)  # type: ignore[arg-type]
        with torch.no_grad():
            found[once] = losses(student, shown, labels, torch.Generator().manual_seed(3))
    assert found[True].keys() == found[False].keys()
    for name, value in found[True].items():
        torch.testing.assert_close(value, found[False][name])
    assert found[True]["distillation"] > 0


def test_guidance_may_take_a_part_of_the_batch() -> None:
    seen: list[int] = []

    class Counting(Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return super().forward(images)

    images, adversarial = pairs()
    labels, panel = torch.arange(COUNT) % 5, Panel([Counting(5, SHAPE), Counting(5, SHAPE)])
    for share, expected in ((1.0, [200, 200]), (0.1, [20, 20]), (1e-6, [1, 1])):
        config = Student(epochs=1, classification_weight=1, guided_share=share)
        compute = student_losses(config, {"NT": nn.Identity()}, panel)
        found = compute(nn.Identity(), torch.cat([images, adversarial], 1), labels, torch.Generator())
        few = sum(expected)
        halves = [slice(few // 2), slice(few // 2, few)]
        logits = torch.cat([one(adversarial[half]) for one, half in zip(panel.classifiers, halves, strict=True)])
        torch.testing.assert_close(found["classification"], classification_loss(logits, labels[:few]))
        assert seen[:2] == expected
        seen.clear()
