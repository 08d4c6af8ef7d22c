"""The trust checks pass sound models, and each planted defect is caught by the check that is meant for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.baselines import JPEG, BitDepth, Median, Noisy, Nothing
from purifiers.cache import Cache
from purifiers.data import ImageSet, to_float
from purifiers.data.digits import load_digits
from purifiers.errors import InputError
from purifiers.evaluation.trust import evidence as evidence_module
from purifiers.evaluation.trust.checks import Check, exceeds, judge, trust_checks, weaker
from purifiers.evaluation.trust.evidence import FACTORS, LONG, PASSES, PROBES, SHORT, STARTS, Evidence, gather, margin
from purifiers.networks import ResNet
from purifiers.runs import Run
from purifiers.seeds import reproducible
from tests.conftest import Linear

SHAPE = (3, 8, 8)
EPSILON = 0.03
OPTIONAL = {"white-box beats black-box", "white-box beats transfer", "the reported attack is the strongest"}
"""Checks that need numbers which only an audit has."""


class Through(nn.Module):
    """A purifier's network, or a classifier's last step, that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


@pytest.fixture(scope="module")
def classifier() -> Linear:
    return Linear(10, SHAPE)


@pytest.fixture(scope="module")
def data(classifier: Linear) -> ImageSet:
    """Random images that the classifier gets right, so that what an attack leaves is its own doing."""
    images = torch.randint(256, (60, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    with torch.no_grad():
        labels = classifier(to_float(images)).argmax(1)
    return ImageSet("random", images, labels, tuple("0123456789"))


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.status == "failed"}


def assert_sound(checks: list[Check], *, identity: bool = False) -> None:
    assert {check.name: check.sentence for check in checks if check.status == "failed"} == {}
    own = {"the purifier's gradient beats the identity's"} if identity else set()
    assert {check.name for check in checks if check.status == "not applicable"} == OPTIONAL | own
    figures = {name: value for check in checks for name, value in check.figures.items()}
    # Well on the right side of the thresholds, not just on it.
    assert figures["false"] <= 0.05
    assert figures["cosine"] > 0.8
    assert figures["lost"] < 0.25


# Sound models


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", EPSILON), ("linf", 0.003), ("l2", 0.2)])
def test_a_linear_model_passes(classifier: Linear, data: ImageSet, norm: str, epsilon: float) -> None:
    checks = trust_checks(PurifiedClassifier(Purifier(Nothing()), classifier), data, epsilon=epsilon, norm=norm)
    assert_sound(checks, identity=True)
    assert len({check.name for check in checks}) == len(checks) == 18
    assert all(check.sentence.endswith(".") for check in checks)


def test_a_differentiable_purifier_passes(classifier: Linear, data: ImageSet) -> None:
    assert_sound(trust_checks(PurifiedClassifier(Purifier(Through(blurred)), classifier), data, epsilon=EPSILON))


def test_a_trained_purifier_passes(tiny_run: Run) -> None:
    defended = PurifiedClassifier(tiny_run.purifiers["student"], tiny_run.classifier)
    assert_sound(trust_checks(defended, tiny_run.images("test").limited(12, seed=0), epsilon=0.1))


@pytest.fixture(scope="module")
def resnet() -> ResNet:
    """Trained on the digits for a few seconds."""
    data = load_digits("train")
    with reproducible(0, torch.device("cpu")):
        network = ResNet(8, width=4)
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(4):
            for chosen in torch.randperm(len(data)).split(64):
                loss = F.cross_entropy(network(to_float(data.images[chosen])), data.labels[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return network.eval()


@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_a_trained_resnet_passes(resnet: ResNet, epsilon: float) -> None:
    data = load_digits("test").limited(12, seed=0)
    assert_sound(trust_checks(PurifiedClassifier(Purifier(Nothing()), resnet), data, epsilon=epsilon), identity=True)


# Planted defects: what is planted, and the checks that must catch it

PLANTED: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "quantised": (lambda x: (x * 7).round() / 7, {"gradients exist", "an unbounded attack reaches 0 %"}),
    "detached": (lambda x: blurred(x).detach(), {"gradients exist", "an unbounded attack reaches 0 %"}),
    "detached in part": (lambda x: x + (blurred(x) - x).detach(), {"gradients are true"}),
    "saturated": (lambda x: torch.sigmoid(1e5 * (x - 0.501)), {"gradients exist", "an unbounded attack reaches 0 %"}),
    "steep": (lambda x: torch.sigmoid(1000 * (x - 0.501)), {"an unbounded attack reaches 0 %"}),
    "not finite": (lambda x: ((x - x.amin((1, 2, 3), keepdim=True)) ** 2).sqrt(), {"gradients exist"}),
    "shattered": (lambda x: (x + 0.01 * torch.sin(2000 * x)).clamp(0, 1), {"gradients are steady"}),
    "reversed": (
        lambda x: 2 * x.detach() - x,
        {"gradients are true", "the loss rises along the attack", "an unbounded attack reaches 0 %"},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_purifier_is_caught(classifier: Linear, data: ImageSet, name: str) -> None:
    function, catching = PLANTED[name]
    checks = trust_checks(PurifiedClassifier(Purifier(Through(function)), classifier), data, epsilon=EPSILON)
    assert catching <= failed(checks)


@pytest.mark.parametrize("network", [BitDepth(3), JPEG(), Median()])
def test_the_identitys_gradient_is_told_from_the_true_one(classifier: Linear, data: ImageSet, network: nn.Module) -> None:
    few = data.subset(torch.arange(6))
    checks = trust_checks(PurifiedClassifier(Purifier(network), classifier), few, epsilon=EPSILON)
    (check,) = [check for check in checks if check.name == "gradients are true"]
    assert check.status == "failed"
    assert "BPDA" in check.sentence
    assert "upper bound" in check.sentence
    assert "gradients exist" not in failed(checks)


def test_a_gradient_that_bends_within_a_grey_level_is_true_and_not_steady(classifier: Linear, data: ImageSet) -> None:
    """Every pixel's slope goes from 6 to -4 and back 33 times within a grey level: only steps far below that follow it."""
    turns = 2 * torch.pi * 255 * 33.37
    bent = Through(lambda x: (x + 5 * torch.sin(turns * x) / turns).clamp(0, 1))
    assert {"gradients are steady", "gradients are true"} & failed(
        trust_checks(PurifiedClassifier(Purifier(bent), classifier), data, epsilon=EPSILON)
    ) == {"gradients are steady"}


def test_a_gradient_that_most_pixels_have_lost_is_caught(resnet: ResNet) -> None:
    """Every image has a gradient and it is true, but a contrast so steep leaves one to few pixels; BPDA sees all."""
    steep = Through(lambda x: torch.sigmoid(1000 * (x - 0.501)))
    data = load_digits("test").limited(24, seed=0)
    checks = trust_checks(PurifiedClassifier(Purifier(steep), resnet), data, epsilon=0.1)
    assert "the purifier's gradient beats the identity's" in failed(checks)
    assert not {"gradients exist", "gradients are true"} & failed(checks)


def test_noise_is_caught_unless_it_was_averaged(classifier: Linear, data: ImageSet) -> None:
    defended = PurifiedClassifier(Purifier(Noisy(Nothing(), sigma=0.02)), classifier)
    name = "deterministic, or EOT used"
    checks = trust_checks(defended, data, epsilon=EPSILON)
    assert name in failed(checks)
    # Noise is not mistaken for a false gradient: each draw has its own, and it is true.
    assert not {"gradients exist", "gradients are true", "gradients are steady"} & failed(checks)
    assert name not in failed(trust_checks(defended, data, epsilon=EPSILON, eot=True))


def test_large_logits_are_caught(classifier: Linear, data: ImageSet) -> None:
    scaled = nn.Sequential(classifier, Through(lambda logits: 1e4 * logits))
    checks = trust_checks(PurifiedClassifier(Purifier(Nothing()), scaled), data, epsilon=EPSILON)
    assert {"gradients exist", "another loss changes little"} <= failed(checks)
    assert "gradients are true" not in failed(checks)  # the model's gradient is; that of the cross-entropy underflows


def test_probabilities_are_caught(classifier: Linear, data: ImageSet) -> None:
    defended = PurifiedClassifier(Purifier(Nothing()), nn.Sequential(classifier, nn.Softmax(1)))
    assert "outputs are logits" in failed(trust_checks(defended, data, epsilon=EPSILON))


# The judgement alone, on evidence made by hand


def evidence(images: int = 100) -> Evidence:
    """Of a sound model: half of the images fall at the first step, and all at an epsilon twice as large."""
    fallen = torch.arange(images) < images // 2
    right = (~fallen).expand(LONG + 1, images).clone()
    right[0] = True
    none, every = torch.zeros(images, dtype=torch.bool), torch.ones(images, dtype=torch.bool)
    return Evidence(
        difference=torch.zeros(images),
        probabilities=none,
        saturated=none,
        gradient_finite=every,
        gradient_length=torch.ones(images),
        predicted=torch.ones(len(PROBES), images),
        observed=torch.ones(len(PROBES), images),
        cosine=torch.ones(images),
        losses=torch.linspace(0, 1, LONG + 1)[:, None].expand(-1, images),
        right=right,
        starts=right[SHORT].expand(STARTS, images),
        epsilons=torch.stack([every, none, none]),
        margin=right[SHORT],
        bpda=right[LONG],
        same=none,
        one_step=right[1],
        unbounded=none,
    )


SPARED = torch.arange(100) >= 50
"""The images that the evidence's attack does not break."""
FIRST = SPARED & (torch.arange(100) < 60)
"""Ten of them."""
NONE = torch.zeros(100, dtype=torch.bool)


def along(steps: slice, fallen: Tensor) -> Tensor:
    """The course of an attack that has also broken ``fallen`` in those steps."""
    right = evidence().right.clone()
    right[steps] &= ~fallen
    return right


ONE_DEFECT: dict[str, tuple[str, dict[str, Tensor]]] = {
    "probabilities": ("outputs are logits", {"probabilities": torch.ones(100, dtype=torch.bool)}),
    "random": ("deterministic, or EOT used", {"difference": torch.full((100,), 1e-3)}),
    "zero": ("gradients exist", {"gradient_length": torch.arange(100).clamp(5, 6) - 5.0}),
    "infinite": ("gradients exist", {"gradient_finite": torch.arange(100) > 5}),
    "false": ("gradients are true", {"observed": torch.tensor(0.5).expand(len(PROBES), 100)}),
    "shattered": ("gradients are steady", {"cosine": torch.zeros(100)}),
    "saturated": ("another loss changes little", {"saturated": SPARED, "margin": NONE}),
    "another loss": ("another loss changes little", {"margin": SPARED & ~FIRST}),
    "noisy loss": ("the loss rises along the attack", {"losses": (torch.arange(LONG + 1) % 2.0)[:, None].expand(-1, 100)}),
    "flat loss": ("the loss rises along the attack", {"losses": torch.zeros(LONG + 1, 100)}),
    "silent success": ("the attack keeps what it finds", {"right": along(slice(10, 12), FIRST)}),
    "unfinished": ("more steps no longer help", {"right": along(slice(40, None), FIRST)}),
    "restarts": ("random restarts change little", {"starts": torch.stack([SPARED, SPARED & ~FIRST, SPARED & ~FIRST.roll(10)])}),
    "epsilon": ("larger epsilons are stronger", {"epsilons": torch.stack([SPARED & ~FIRST, NONE, NONE])}),
    "unbounded": ("an unbounded attack reaches 0 %", {"unbounded": FIRST}),
    "masked": ("the purifier's gradient beats the identity's", {"bpda": SPARED & ~FIRST}),
    "one step": ("iterative beats one-step", {"one_step": SPARED & ~FIRST}),
}  # fmt: skip


def test_sound_evidence_passes_both_norms() -> None:
    assert failed(judge(evidence(), "linf", {}, eot=False)) == set()
    assert failed(judge(evidence(), "l2", {}, eot=False)) == set()


@pytest.mark.parametrize("defect", ONE_DEFECT)
def test_each_defect_fails_its_own_check_and_no_other(defect: str) -> None:
    name, changed = ONE_DEFECT[defect]
    assert failed(judge(replace(evidence(), **changed), "linf", {}, eot=False)) == {name}


def test_a_purifier_that_passes_on_the_identitys_gradient_is_not_praised_for_it() -> None:
    checks = judge(replace(evidence(), same=torch.ones(100, dtype=torch.bool)), "linf", {}, eot=False)
    name = "the purifier's gradient beats the identity's"
    assert [check.status for check in checks if check.name == name] == ["not applicable"]


def test_more_steps_that_hurt_are_caught() -> None:
    """Ten images are broken after half of the steps and right again after all: silent success catches that too."""
    lost = replace(evidence(), right=along(slice(SHORT, SHORT + 1), FIRST))
    assert failed(judge(lost, "linf", {}, eot=False)) == {"more steps do not hurt", "the attack keeps what it finds"}


def test_few_images_are_no_evidence() -> None:
    """One of eight could be chance; twelve of a hundred, the same share, could not."""
    for images, caught in ((8, set()), (100, {"the attack keeps what it finds"})):
        sound = evidence(images)
        right = sound.right.clone()
        right[10, images - images // 8 :] = False
        assert failed(judge(replace(sound, right=right), "linf", {}, eot=False)) == caught


def test_an_l2_gradient_too_short_to_be_scaled_is_none() -> None:
    tiny = replace(evidence(), gradient_length=torch.full((100,), 1e-20))
    assert failed(judge(tiny, "linf", {}, eot=False)) == set()
    assert failed(judge(tiny, "l2", {}, eot=False)) == {"gradients exist"}


def first(count: int) -> Tensor:
    """The first so many of 100 images."""
    return torch.arange(100) < count


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"white-box": first(20), "black-box": first(50), "iterative": first(20), "one-step": first(30)}, set()),
        ({"white-box": first(20), "black-box": first(14)}, set()),  # 6 heads in 6 throws: 1 in 64 by chance
        ({"white-box": first(20), "black-box": first(13)}, {"white-box beats black-box"}),  # 7 in 7: 1 in 128
        # The counts differ by 8 too, but each breaks many that the other does not: 24 heads in 40 throws, one chance in 7.
        ({"white-box": first(24), "black-box": first(40) & ~first(24)}, set()),
        ({"white-box": first(20), "black-box": first(50), "transfer": first(10)}, {"white-box beats transfer"}),
        ({"black-box": NONE}, {"white-box beats black-box"}),  # the white-box attack of the checks themselves leaves half
        ({"iterative": first(30), "one-step": first(20)}, {"iterative beats one-step"}),
    ],
)
def test_what_the_audit_knows_is_compared_image_by_image(known: dict[str, Tensor], expected: set[str]) -> None:
    checks = judge(evidence(), "linf", known, eot=False)
    assert failed(checks) == expected
    missing = {f"white-box beats {other}" for other in ("black-box", "transfer") if other not in known}
    missing |= {"the reported attack is the strongest"}
    assert {check.name for check in checks if check.status == "not applicable"} == missing


def test_a_reported_attack_is_compared_with_the_checks_own() -> None:
    """The checks' own attack leaves half. Of a random model it knows the draw, and proves nothing."""
    random = replace(evidence(), difference=torch.full((100,), 1e-3))
    for reported, about, caught in ((SPARED, evidence(), False), (~NONE, evidence(), True), (~NONE, random, False)):
        checks = judge(about, "linf", {}, eot=True, reported=reported)
        assert ("the reported attack is the strongest" in failed(checks)) == caught


def test_other_images_are_not_compared() -> None:
    """Without a white-box result of its own the attack of the checks stands in, on the images of the checks only."""
    checks = {check.name: check for check in judge(evidence(), "linf", {"black-box": NONE[:40]}, eot=False)}
    assert checks["white-box beats black-box"].status == "not applicable"


def test_the_margin_is_worked_out_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, -1.0, 4.0]])
    assert margin(logits, torch.tensor([0, 1])).tolist() == [-0.5, 5.0]


def test_shares_and_comparisons_respect_chance() -> None:
    assert not exceeds(torch.arange(20) < 1, 0.02)
    assert exceeds(torch.arange(20) < 5, 0.02)
    one, other = torch.arange(10) < 8, torch.arange(10) >= 8
    assert weaker(one, other) == pytest.approx(56 / 1024)  # 8, 9 or 10 heads in 10 throws: 45 + 10 + 1
    assert weaker(one, one) == 1


# The measurement


def test_evidence_does_not_depend_on_batches_and_is_the_same_again(classifier: Linear, data: ImageSet) -> None:
    """What needs no random start is the same in batches; everything is the same for the same seed."""
    defended, few = PurifiedClassifier(Purifier(Nothing()), classifier), data.subset(torch.arange(12))
    passes: list[float] = []
    options = {"epsilon": EPSILON, "norm": "linf", "seed": 0, "cache": Cache(None)}
    first = gather(defended, few, batch_size=12, advance=passes.append, **options)
    assert sum(passes) == pytest.approx(len(few))
    assert len(passes) == PASSES
    assert PASSES <= 400
    again = gather(defended, few, batch_size=12, advance=lambda images: None, **options)
    parts = gather(defended, few, batch_size=5, advance=lambda images: None, **options)
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for name in ("unbounded", "one_step", "saturated"):
        assert torch.equal(getattr(first, name), getattr(parts, name))
    assert first.epsilons.shape == (len(FACTORS), 12)


def test_one_step_and_many_reach_the_known_optimum_of_a_linear_model() -> None:
    """Two classes: an image falls if and only if its margin is under epsilon * |w1 - w0|_1; nothing is clipped at mid-grey."""
    model = Linear(2, SHAPE)
    images = torch.randint(118, 138, (40, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(to_float(images))
    labels = logits.argmax(1)
    data = ImageSet("grey", images, labels, ("a", "b"))
    leads = (logits[:, 0] - logits[:, 1]).abs()
    reach = (model.weight[1] - model.weight[0]).abs().sum().item()
    epsilon = leads.median().item() / reach * 1.0001
    options = {"norm": "linf", "seed": 0, "batch_size": 40, "cache": Cache(None), "advance": lambda images: None}
    found = gather(PurifiedClassifier(Purifier(Nothing()), model), data, epsilon=epsilon, **options)
    expected = leads > epsilon * reach
    for attacked in (found.one_step, found.right[LONG], found.starts.all(0), found.margin):
        assert torch.equal(attacked, expected)
    for factor, attacked in zip(FACTORS, found.epsilons, strict=True):
        assert torch.equal(attacked, leads > factor * epsilon * reach)
    assert not found.unbounded.any()
    torch.testing.assert_close(found.cosine, torch.ones(40))


def test_the_model_is_left_as_it_was(classifier: Linear, data: ImageSet) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid())
    defended = PurifiedClassifier(Purifier(network), classifier).train()
    before = {name: value.clone() for name, value in defended.state_dict().items()}
    trust_checks(defended, data.subset(torch.arange(2)), epsilon=0.1)
    assert defended.training
    assert all(parameter.requires_grad for parameter in defended.parameters())
    assert all(torch.equal(value, before[name]) for name, value in defended.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon above 0"),
        ({"epsilon": 8}, "write 8/255"),
        ({"epsilon": EPSILON, "known": {"whitebox": NONE}}, "did you mean 'white-box'"),
        ({"epsilon": EPSILON, "known": {"white-box": 0.45}}, "for each image"),
        ({"epsilon": EPSILON, "known": {"white-box": NONE, "transfer": NONE[:9]}}, "must be of the same images"),
    ],
)
def test_wrong_arguments_are_refused(classifier: Linear, data: ImageSet, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trust_checks(PurifiedClassifier(Purifier(Nothing()), classifier), data, **options)


def test_where_the_memory_is_too_small_halves_are_measured(
    classifier: Linear, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, whole = [], trust_checks(PurifiedClassifier(Purifier(Nothing()), classifier), data, epsilon=EPSILON)
    measure = evidence_module._Batch.evidence

    def small(batch: Any) -> Any:
        if len(batch.images) > 20:
            raise MemoryError
        batches.append(len(batch.images))
        return measure(batch)

    monkeypatch.setattr(evidence_module._Batch, "evidence", small)
    halves = trust_checks(PurifiedClassifier(Purifier(Nothing()), classifier), data, epsilon=EPSILON)
    assert sum(batches) == len(data)
    assert max(batches) <= 20
    assert [check.status for check in halves] == [check.status for check in whole]
