"""The audit on linear models, whose robust accuracy is known: the share of images farther than epsilon from the boundary."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import purifiers
from purifiers import PurifiedClassifier
from purifiers.attacks import PGD, VIEWS, Attack, AutoAttack
from purifiers.baselines import Noisy, Nothing
from purifiers.cache import Cache
from purifiers.data import ImageSet, to_float
from purifiers.errors import CheckpointError, ConfigError, InputError, MissingFileError, Unfinished
from purifiers.evaluation.audit import attack as audit_module
from purifiers.evaluation.audit.attack import Subject
from purifiers.evaluation.audit.result import EVERYTHING, WORST, Audit
from purifiers.evaluation.audit.run import audit, audit_all, audit_by_name
from purifiers.evaluation.records import CLEAN
from purifiers.evaluation.trust import evidence as evidence_module
from purifiers.evaluation.trust.checks import Check
from purifiers.recipes.audit_settings import TRANSFER, AuditSettings
from purifiers.seeds import reproducible
from purifiers.shards import Shard
from tests.attacks.test_libraries import boundary_distances
from tests.conftest import Linear

SHAPE = (3, 4, 4)
ALL_GONE = dict.fromkeys(
    name + suffix for name in ("FGSM", "MI-FGSM", "PGD", "foolbox PGD", "AA", "Square", "HopSkipJump") for suffix in ("", "-L2")
)


def settings(attacks: Mapping[str, Any], views: Mapping[str, Any], **others: Any) -> AuditSettings:
    """These attacks and views, and nothing of the standard ones."""
    everywhere = dict.fromkeys((*VIEWS, TRANSFER), ()) | dict(views)
    return AuditSettings(attacks=ALL_GONE | dict(attacks), views=everywhere, **{"check_images": 0, **others})


def pgd(norm: str = "linf", epsilon: float = 0.02, num_steps: int = 10) -> dict[str, Any]:
    return {"kind": "pgd", "norm": norm, "step_size": epsilon / 3, "num_steps": num_steps}


def problem(count: int = 40, classes: int = 2) -> tuple[Linear, ImageSet]:
    """A linear model and images that it is right on, but for the first."""
    model = Linear(classes, SHAPE)
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(90, 165, (count, *SHAPE), generator=generator).to(torch.uint8)
    with torch.no_grad():  # no class is rare
        model.bias -= model(to_float(images)).mean(0)
        labels = model(to_float(images)).argmax(1)
    labels[0] = (labels[0] + 1) % classes
    return model, ImageSet("grey", images, labels, tuple("abcdefghij")[:classes])


class Mirror(nn.Module):
    """A known purifier that takes the attack's direction for the other one: dark for bright."""

    def forward(self, images: Tensor) -> Tensor:
        return 1 - images


def exact_accuracy(model: Linear, data: ImageSet, norm: Literal["linf", "l2"], epsilon: float) -> float:
    images = to_float(data.images)
    margins = boundary_distances(model, images, data.labels, norm)
    assert ((margins - epsilon).abs() > 1e-5).all()  # none at the very boundary
    return (margins > epsilon).float().mean().item()


def median_distance(model: Linear, data: ImageSet, norm: str) -> float:
    """About that: in the middle of the widest gap between distances there, so that no image is at the very boundary."""
    margins = boundary_distances(model, to_float(data.images), data.labels, norm).sort().values
    middle = margins[len(margins) // 3 : 2 * len(margins) // 3]
    widest = int(middle.diff().argmax())
    return float(middle[widest] + middle[widest + 1]) / 2


def test_the_worst_case_of_a_linear_model_is_the_known_one_in_both_norms() -> None:
    model, data = problem()
    balls = {norm: median_distance(model, data, norm) for norm in ("linf", "l2")}
    chosen = settings(
        {"PGD": pgd(epsilon=balls["linf"]), "PGD-L2": pgd("l2", balls["l2"])},
        {"full": ["PGD", "PGD-L2"], "bpda": ["PGD"], "blind": ["PGD"]},
        epsilon=balls["linf"],
        epsilon_l2=balls["l2"],
    )
    found = audit(nn.Identity(), model, data, settings=chosen, purifier_name="nothing")
    for norm in ("linf", "l2"):
        worst = found.worst("nothing", norm)
        assert worst is not None
        assert worst.accuracy == pytest.approx(exact_accuracy(model, data, norm, balls[norm]))
        assert (worst.view, worst.n, worst.epsilon) == ("worst", 40, balls[norm])
        assert worst.ci95[0] < worst.accuracy < worst.ci95[1]
    assert found.worst("nothing", "l2", "gray-box") is None
    assert found.random == [] and found.purifiers == ["nothing"]


def test_views_decide_what_a_known_purifier_withstands() -> None:
    """Behind the mirror an attack on the classifier alone, and one that takes the mirror for the identity, help the images;
    the exact gradient finds all that can be broken."""
    model, data = problem()
    mirrored = Linear(2, SHAPE)  # right on mirrored images: -w x + (b + w 1) at 1 - x is w x + b
    with torch.no_grad():
        mirrored.weight.copy_(-model.weight)
        mirrored.bias.copy_(model.bias + model.weight.sum(1))
    epsilon = median_distance(model, data, "linf")
    one = settings({"PGD": pgd(epsilon=epsilon)}, {"full": "PGD", "bpda": "PGD", "blind": "PGD"}, epsilon=epsilon)
    found = audit(Mirror(), mirrored, data, settings=one, purifier_name="mirror")
    exact = exact_accuracy(model, data, "linf", epsilon)
    by_view = {record.view: record.accuracy for record in found.records}
    assert by_view["none"] == pytest.approx(39 / 40)
    assert by_view["full"] == pytest.approx(exact)
    # The mislabelled image is moved towards its label by an attack that goes the wrong way.
    assert by_view["bpda"] >= 39 / 40 and by_view["blind"] >= 39 / 40
    worst, gray = found.worst("mirror"), found.worst("mirror", group="gray-box")
    assert worst is not None and gray is not None
    assert worst.accuracy == pytest.approx(exact)
    assert gray.accuracy == pytest.approx(39 / 40)  # an image that is wrong unattacked is never right


class HalfBlind(Attack):
    """Breaks the images of one label only."""

    epsilon: float = 1.0
    label: int

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        attack = PGD(epsilon=self.epsilon, step_size=self.epsilon / 2, num_steps=6)
        return torch.where((labels == self.label).view(-1, 1, 1, 1), attack(model, images, labels), images)


def half_blind(*labels: int, **others: Any) -> AuditSettings:
    """Attacks that each break one label; put in behind the schema, as they have an epsilon of their own."""
    chosen = settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=1.0, **others)
    attacks: dict[str, Any] = {f"half {label}": HalfBlind(label=label) for label in labels}
    return chosen.model_copy(update={"attacks": attacks, "views": {"full": tuple(attacks)}})


def test_the_worst_case_is_the_and_over_attacks_image_by_image() -> None:
    model, data = problem(30, classes=3)
    found = audit(nn.Identity(), model, data, settings=half_blind(0, 1), purifier_name="x")
    right = torch.ones(30, dtype=torch.bool)
    right[0] = False
    for label in (0, 1):
        record = next(record for record in found.records if record.attack == f"half {label}")
        survivors = right & (data.labels != label)
        assert record.accuracy == pytest.approx((survivors.sum() / 30).item())
    worst = found.worst("x")
    assert worst is not None
    assert worst.accuracy == pytest.approx((right & (data.labels == 2)).sum().item() / 30)
    assert 0 < worst.accuracy < min(record.accuracy for record in found.records[:-2])


def test_a_cascade_attacks_survivors_only_and_finds_the_same_worst_case() -> None:
    model, data = problem(30, classes=3)
    whole = audit(nn.Identity(), model, data, settings=half_blind(0, 1), purifier_name="x")
    cascade = audit(nn.Identity(), model, data, settings=half_blind(0, 1, 2, cascade=True), purifier_name="x")
    first, second, third = (record for record in cascade.records if record.view == "full")
    right = data.labels != -1
    right[0] = False
    assert first.attacked == 29
    assert second.attacked == (right & (data.labels != 0)).sum()
    assert third.attacked == (right & (data.labels == 2)).sum()
    worst = whole.worst("x")
    assert worst is not None
    assert second.accuracy == worst.accuracy  # what is left after both, as image by image
    assert third.accuracy == 0
    assert (second.n, third.n) == (30, 30)
    white_box = cascade.worst("x", group="white-box")
    assert white_box is not None and white_box.accuracy == 0


def test_a_cascades_row_is_of_what_was_attacked() -> None:
    """The second attack changes nothing, so that its images are the originals, whatever the first has made of others."""
    model, data = problem(30, classes=3)
    found = audit(nn.Identity(), model, data, settings=half_blind(0, 7, cascade=True), purifier_name="x")
    first, second = (record for record in found.records if record.view == "full")
    assert first.psnr < 100
    assert (second.psnr, second.l2, second.agreement, second.accuracy_undefended) == (pytest.approx(100), 0, 1, 1)
    assert second.n == 30 and second.accuracy == first.accuracy < 1


def test_every_group_has_a_cascade_of_its_own() -> None:
    """What a white-box attacker has broken is not taken from the one who knows less: each has a worst case of its own."""
    model, data = problem(30, classes=3)
    chosen = half_blind(0, 1, cascade=True)
    names = tuple(chosen.attacks)
    chosen = chosen.model_copy(update={"views": {"full": names[:1], "blind": names[1:]}})
    found = audit(nn.Identity(), model, data, settings=chosen, purifier_name="x")
    full, blind = (next(record for record in found.records if record.view == view) for view in ("full", "blind"))
    assert full.attacked == blind.attacked == 29
    left = {group: found.worst("x", group=group) for group in ("white-box", "gray-box", "all attacks")}
    shares = {group: record.accuracy for group, record in left.items() if record is not None}
    assert shares["all attacks"] == pytest.approx(shares["white-box"] + shares["gray-box"] - 29 / 30)


def test_a_cascade_with_nothing_left_says_so() -> None:
    model, data = problem(12)
    again = half_blind(0, 1, cascade=True)
    attacks = {"first": HalfBlind(label=0), "second": HalfBlind(label=1), "third": HalfBlind(label=1)}
    again = again.model_copy(update={"attacks": attacks, "views": {"full": tuple(attacks)}})
    found = audit(nn.Identity(), model, data, settings=again, purifier_name="x")
    assert [record.attacked for record in found.records if record.view == "full"][-1] == 0
    worst = found.worst("x")
    assert worst is not None and worst.accuracy == 0 and worst.n == 12


def test_limits_give_nested_subsets_and_the_worst_case_is_over_the_smallest() -> None:
    model, data = problem()
    epsilon = median_distance(model, data, "linf")
    chosen = settings(
        {"PGD": pgd(epsilon=epsilon), "few": pgd(epsilon=epsilon)},
        {"full": ["PGD", "few"]},
        epsilon=epsilon,
        images=30,
        limits={"few": 10},
    )
    found = audit(nn.Identity(), model, data, settings=chosen, purifier_name="x", seed=4)
    assert [(record.attack, record.n) for record in found.records] == [
        ("none", 30),
        ("PGD", 30),
        ("few", 10),
        (EVERYTHING, 10),
        ("white-box", 10),
    ]
    few, worst = found.records[2], found.worst("x")
    assert worst is not None and worst.accuracy == few.accuracy  # a linear model: both break the same images
    by_name = settings({"PGD": pgd()}, {"full": ["PGD"]}, limits={"x": 7})
    assert {record.n for record in audit(nn.Identity(), model, data, settings=by_name, purifier_name="x").records} == {7}


def test_transfer_attacks_other_models_and_names_them() -> None:
    model, data = problem()
    epsilon = median_distance(model, data, "linf")
    opposite = Linear(2, SHAPE)
    with torch.no_grad():
        opposite.weight.copy_(-model.weight)
    surrogates = {"twin": Linear(2, SHAPE), "pair": PurifiedClassifier(nn.Identity(), opposite)}
    chosen = settings({"PGD": pgd(epsilon=epsilon)}, {"transfer": ["PGD"]}, epsilon=epsilon)
    found = audit(nn.Identity(), model, data, settings=chosen, surrogates=surrogates, purifier_name="x")
    accuracy = {record.attack: record.accuracy for record in found.records if record.view == "transfer"}
    assert accuracy["PGD on twin"] == pytest.approx(exact_accuracy(model, data, "linf", epsilon))
    assert accuracy["PGD on pair"] >= 39 / 40  # drives every image away from the boundary
    alone = audit(nn.Identity(), model, data, settings=chosen, purifier_name="x")
    assert [record.view for record in alone.records] == ["none"]
    assert alone.worst("x") is None


def test_a_transfer_attack_may_be_called_like_one_on_a_surrogate() -> None:
    model, data = problem()
    attacks = {"PGD": pgd(), "PGD on a diet": pgd(num_steps=2)}
    chosen = settings(attacks, {"transfer": list(attacks)})
    found = audit(nn.Identity(), model, data, settings=chosen, surrogates={"twin": model}, purifier_name="x").titles()
    for name in attacks:
        assert found[f"{name} on twin"] == f"{found[name]} on twin"
    assert found["PGD"] != found["PGD on a diet"]


def test_random_purifiers_are_attacked_in_expectation_and_by_autoattacks_rand_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def perturb(self: AutoAttack, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        ran.append(self.version)
        return images

    ran: list[str] = []
    monkeypatch.setattr(AutoAttack, "perturb", perturb)
    model, data = problem(6)
    chosen = settings(
        {"PGD": pgd(num_steps=2), "AA": {"kind": "autoattack"}},
        {"full": ["AA"], "eot": ["PGD"]},
        epsilon=0.02,
        draws=3,
        images=4,
    )
    noise = audit(Noisy(Nothing(), sigma=0.01), model, data, settings=chosen, purifier_name="noise")
    assert noise.random == ["noise"]
    assert [(record.view, record.attack) for record in noise.records[1:3]] == [("eot", "PGD"), ("full", "AA, rand")]
    still = audit(nn.Identity(), model, data, settings=chosen, purifier_name="still")
    assert ran == ["rand", "standard"]
    assert still.random == []
    assert [(record.view, record.attack) for record in still.records[1:2]] == [("full", "AA")]


class Outside(Attack):
    """Leaves its ball."""

    epsilon: float = 0.02

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        return images * 0


def test_an_attack_that_cannot_be_run_is_left_out_and_named() -> None:
    model, data = problem(6)
    chosen = settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=0.02)
    both: dict[str, Any] = {**chosen.attacks, "outside": Outside()}
    found = audit(
        nn.Identity(),
        model,
        data,
        settings=chosen.model_copy(update={"attacks": both, "views": {"full": ("outside", "PGD")}}),
        purifier_name="x",
    )
    assert {record.attack for record in found.records} == {"none", "PGD", EVERYTHING, "white-box"}
    (warning,) = found.warnings
    assert warning.attack == "outside"
    assert "moved an image by" in warning.message


class WithoutGradient(nn.Module):
    """The identity, as somebody writes it who thinks of inference only."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return images.clone()


@pytest.mark.usefixtures("brief_square")
def test_without_a_gradient_the_white_box_attacks_take_the_identitys() -> None:
    model, data = problem(12)
    # One image is left.
    epsilon = float(boundary_distances(model, to_float(data.images), data.labels, "linf").sort().values[-2:].mean())
    chosen = settings(
        {
            "PGD": pgd(epsilon=epsilon),
            "again": {**pgd(epsilon=epsilon), "kind": "foolbox_pgd"},
            "AA": {"kind": "autoattack"},
            "Square": {"kind": "square", "num_queries": 3},
        },
        {"full": ["PGD", "again", "AA"], "bpda": ["PGD"], "query": ["Square"], "transfer": ["PGD"]},
        epsilon=epsilon,
    )
    found = audit(WithoutGradient(), model, data, settings=chosen, surrogates={"twin": Linear(2, SHAPE)}, purifier_name="x")
    assert {(warning.view, warning.attack) for warning in found.left_out("x")} == {
        ("full", name) for name in ("PGD", "again", "AA")
    }
    assert all("passes none to its images" in warning.message for warning in found.left_out("x"))
    bpda = {record.attack: record.accuracy for record in found.records if record.view == "bpda"}
    assert bpda == dict.fromkeys(["PGD", "again", "AA"], pytest.approx(exact_accuracy(model, data, "linf", epsilon)))
    assert {record.view for record in found.records} == {"none", "bpda", "query", "transfer", "worst"}


class NoisyWithoutGradient(WithoutGradient):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 1e-4 * torch.randn_like(images))


def test_a_random_purifier_without_a_gradient_is_averaged_over_the_identitys() -> None:
    model, data = problem(12)
    epsilon = median_distance(model, data, "linf")
    chosen = settings({"PGD": pgd(epsilon=epsilon)}, {"full": ["PGD"], "eot": ["PGD"]}, epsilon=epsilon, draws=3)
    found = audit(NoisyWithoutGradient(), model, data, settings=chosen, purifier_name="x")
    assert found.random == ["x"]
    (eot,) = (record for record in found.records if record.view == "eot")
    assert eot.accuracy == pytest.approx(exact_accuracy(model, data, "linf", epsilon))


def test_a_random_purifier_is_judged_by_one_draw_whatever_subset_is_attacked() -> None:
    """Nothing is changed by more than a millionth: only other draws could break an image in a smaller subset, or a cascade."""
    model, data = problem(60)
    near = {"PGD": pgd(epsilon=1e-6, num_steps=1), "few": pgd(epsilon=1e-6, num_steps=1), "fewer": {"kind": "fgsm"}}
    for cascade in (False, True):
        chosen = settings(
            near, {"blind": list(near)}, epsilon=1e-6, limits={"few": 40, "fewer": 20}, cascade=cascade, check_images=0
        )
        found = audit(Noisy(Nothing(), sigma=0.05), model, data, settings=chosen, purifier_name="noise")
        clean = found.clean("noise")
        assert 0.3 < clean.accuracy < 0.99  # the draw decides
        worst, fewer = found.worst("noise"), next(record for record in found.records if record.attack == "fewer")
        assert worst is not None and worst.n == fewer.n == 20
        assert worst.accuracy == fewer.accuracy
        pgd_record = next(record for record in found.records if record.attack == "PGD")
        assert pgd_record.accuracy == pytest.approx(clean.accuracy, abs=1 / 60)


def test_an_average_that_had_nothing_left_to_attack_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(audit_module, "trust_checks", lambda *given, **options: told.update(options) or [])
    model, data = problem(6)
    chosen = settings(
        {"PGD": pgd(epsilon=0.5)}, {"full": ["PGD"], "eot": ["PGD"]}, epsilon=0.5, cascade=True, check_images=6, draws=2
    )
    found = audit(Noisy(Nothing(), sigma=1e-3), model, data, settings=chosen, purifier_name="noise")
    assert [record.attacked for record in found.records if record.view == "eot"] == [0]
    assert told["eot"] is True


def test_one_infinite_gradient_does_not_spare_the_other_images() -> None:
    class Root(nn.Module):
        """The identity, whose gradient is not a number where the first value is zero."""

        def forward(self, images: Tensor) -> Tensor:
            first = images[:, :1, :1, :1]
            return images + (first**2).sqrt() - first.detach()

    model, data = problem(12)
    data.images[3, 0, 0, 0] = 0
    with torch.no_grad():
        data.labels[1:] = model(to_float(data.images)).argmax(1)[1:]
    for norm in ("linf", "l2"):
        epsilon = median_distance(model, data, norm) * 1.5
        attacks = {"PGD": pgd(norm, epsilon), "MI": {**pgd(norm, epsilon), "kind": "mifgsm"}}
        chosen = settings(attacks, {"full": ["PGD", "MI"]}, **{"epsilon" if norm == "linf" else "epsilon_l2": epsilon})
        found = audit(Root(), model, data, settings=chosen, purifier_name="x")
        assert found.left_out("x") == []
        for record in found.records[1:3]:
            assert record.accuracy < 0.5 * found.clean("x").accuracy


def test_models_are_left_as_they_were() -> None:
    model, data = problem(6)
    normed = nn.Sequential(nn.BatchNorm2d(3), Linear(2, SHAPE)).train()
    purifier = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Sigmoid())
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    chosen = settings({"PGD": pgd(num_steps=1)}, {"transfer": ["PGD"]}, epsilon=0.02)
    audit(purifier, model, data, settings=chosen, surrogates={"normed": normed})
    assert normed.training and normed[0].training and all(parameter.requires_grad for parameter in normed.parameters())
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())
    assert purifier[0].num_batches_tracked == 0


def test_a_stopped_audit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = problem()
    attacks = {"first": pgd(), "second": {"kind": "fgsm"}}
    chosen = settings(attacks, {"full": list(attacks)}, epsilon=0.02)
    calls: list[str] = []

    def counted(self: Attack, *arguments: Any, **options: Any) -> Tensor:
        calls.append(self.kind)
        if stop and self.kind == "fgsm":
            raise KeyboardInterrupt
        return plain(self, *arguments, **options)

    plain = Attack.__call__
    monkeypatch.setattr(Attack, "__call__", counted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        audit(nn.Identity(), model, data, settings=chosen, cache=tmp_path)
    stop = False
    second = audit(nn.Identity(), model, data, settings=chosen, cache=tmp_path)
    assert calls == ["pgd", "fgsm", "fgsm"]
    third = audit(nn.Identity(), model, data, settings=chosen, cache=tmp_path)
    assert calls == ["pgd", "fgsm", "fgsm"]
    assert third.records == second.records


def test_trust_checks_are_told_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = problem()
    epsilon = median_distance(model, data, "linf")
    told: dict[str, Any] = {}

    def checks(defended: PurifiedClassifier, images: ImageSet, **options: Any) -> list[Check]:
        told.update(options, n=len(images), defended=defended)
        return [Check(name="one", status="failed", sentence="No.", figures={"share": 0.5})]

    monkeypatch.setattr(audit_module, "trust_checks", checks)
    chosen = settings(
        {"PGD": pgd(epsilon=epsilon), "FGSM": {"kind": "fgsm"}, "Square": {"kind": "square", "num_queries": 5}},
        {"full": ["FGSM", "PGD"], "query": ["Square"], "transfer": ["PGD"]},
        epsilon=epsilon,
        limits={"Square": 20},
        check_images=8,
    )
    found = audit(nn.Identity(), model, data, settings=chosen, surrogates={"twin": Linear(2, SHAPE)}, purifier_name="x", seed=3)
    assert [check.name for check in found.failed("x")] == ["one"]
    assert (told["n"], told["epsilon"], told["seed"]) == (8, epsilon, 3)
    known = told["known"]
    assert known.keys() == {"white-box", "black-box", "transfer", "one-step", "iterative"}
    # All on the 20 images of the smallest subset, where the linear model is broken by any gradient alike.
    worst = found.worst("x", group="white-box")
    assert worst is not None and worst.n == 20
    assert known["white-box"].float().mean().item() == pytest.approx(worst.accuracy)
    assert all(torch.equal(known[name], known["white-box"]) for name in ("one-step", "iterative", "transfer"))
    assert len(known["black-box"]) == 20
    assert not (known["white-box"] & ~known["black-box"]).any()  # the square attack finds nothing that a gradient does not
    few = chosen.model_copy(update={"limits": {"x": 5}, "views": {"full": ("FGSM",)}})
    audit(nn.Identity(), model, data, settings=few, purifier_name="x")
    assert told["n"] == 5  # the purifier's own limit
    without = audit(nn.Identity(), model, data, settings=few.model_copy(update={"check_images": 0}), purifier_name="x")
    assert without.checks == {}


@pytest.mark.parametrize("cascade", [False, True])
def test_shards_give_the_result_of_one_process(tmp_path: Path, cascade: bool) -> None:
    """Attacks of three sizes of batches, one that cannot be run, a random purifier, and trust checks."""
    model, data = problem(30)
    chosen = settings(
        {"PGD": pgd(num_steps=2), "PGD-L2": pgd("l2", 0.1, num_steps=2)},
        {"full": ["PGD", "PGD-L2"], "eot": ["PGD"], "blind": ["PGD"]},
        epsilon=0.02,
        epsilon_l2=0.1,
        cascade=cascade,
        draws=2,
        check_images=4,
    )
    views: dict[str, Any] = {**chosen.views, "blind": ("outside", "PGD")}
    chosen = chosen.model_copy(update={"attacks": {**chosen.attacks, "outside": Outside()}, "views": views})

    def measured(cache: Cache) -> dict[str, Any]:
        with reproducible(0, torch.device("cpu")):
            noisy = Noisy(Nothing(), sigma=0.05, epsilon=1.0)
        found = cache.shard.finish(lambda: audit(noisy, model, data, settings=chosen, batch_size=7, cache=cache))
        return without_seconds(found)

    expected = measured(Cache(None))
    assert any(one["left_out"] for one in expected["warnings"])
    for order in ((2, 0, 1), (0,)):  # the last one completes it, and so does any later one
        for index in order[:-1]:
            with pytest.raises(Unfinished, match="pieces"):
                measured(Cache(tmp_path, Shard(index, 3)))
        assert measured(Cache(tmp_path, Shard(order[-1], 3))) == expected


def test_the_pieces_that_a_shard_of_a_cascade_misses_are_made_by_the_others(tmp_path: Path) -> None:
    """Those of later attacks are of the images that earlier ones left, which only the others know."""
    model, data = problem(30)
    chosen = settings(
        {"weak": pgd(num_steps=1), "PGD": pgd(num_steps=5)},
        {"full": ["weak", "PGD"]},
        epsilon=0.05,
        cascade=True,
        check_images=4,
    )
    first, second = (Cache(tmp_path, Shard(index, 2)) for index in range(2))
    with pytest.raises(Unfinished):
        audit(Nothing(), model, data, settings=chosen, batch_size=7, cache=first)
    found = second.shard.finish(lambda: audit(Nothing(), model, data, settings=chosen, batch_size=7, cache=second))
    weak = next(record for record in found.records if record.attack == "weak")
    assert 0 < weak.accuracy < 1
    assert first.shard.missing and all(file.is_file() for file in first.shard.missing)


def without_seconds(found: Audit) -> dict[str, Any]:
    """The result without what differs from run to run."""
    records = [one.model_copy(update={"seconds": 0.0}) for one in found.records]
    return found.model_copy(update={"seconds": 0.0, "records": records}).model_dump()


def test_the_evidence_of_trust_checks_is_gathered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    measured = evidence_module._Batch.evidence

    def evidence(batch: Any) -> Any:
        calls.append(len(batch.images))
        return measured(batch)

    monkeypatch.setattr(evidence_module._Batch, "evidence", evidence)
    model, data = problem(12)
    chosen = settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=0.02, check_images=8)
    first, again = (audit(nn.Identity(), model, data, settings=chosen, cache=tmp_path) for _ in range(2))
    assert calls == [8] and again.checks == first.checks != {}
    audit(nn.Identity(), model, data, settings=chosen.model_copy(update={"check_images": 6}), cache=tmp_path)
    audit(Mirror(), model, data, settings=chosen, cache=tmp_path)
    assert calls == [8, 6, 8]
    for path in tmp_path.glob("evidence-*"):
        path.write_bytes(path.read_bytes()[:-9])
    assert audit(nn.Identity(), model, data, settings=chosen, cache=tmp_path).checks == first.checks
    assert calls == [8, 6, 8, 8]


def test_several_purifiers_in_one_audit_on_the_same_images() -> None:
    model, data = problem()
    subjects = [Subject("one", PurifiedClassifier(nn.Identity(), model)), Subject("two", PurifiedClassifier(Mirror(), model))]
    found = audit_all(subjects, data, settings({"PGD": pgd()}, {"blind": ["PGD"]}, epsilon=0.02, images=9))
    assert found.purifiers == ["one", "two"]
    assert {record.n for record in found.records} == {9}
    with pytest.raises(InputError, match="different names"):
        audit_all([subjects[0], subjects[0]], data)
    with pytest.raises(InputError, match="different names"):
        audit_all([], data)


def test_a_purifier_by_two_names_is_audited_once(tmp_path: Path) -> None:
    for names in (["run1", "./run1"], ["cifar10", "cifar10"]):
        with pytest.raises(ConfigError, match="duplicate"):
            audit_by_name(names, [], tmp_path)


def test_labels_that_one_classifier_predicts_are_not_for_another(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 9, 9)).save(tmp_path / "images" / f"{i}.png")
    given = [("data.name", "folder"), ("data.path", str(tmp_path / "images"))]
    with pytest.raises(ConfigError, match="cifar10-cpu has another"):
        audit_by_name(["cifar10", "cifar10-cpu"], given, tmp_path)


def test_tensors_and_batches_are_taken_as_they_come() -> None:
    model, data = problem(8)
    chosen = settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=0.02)
    whole = audit(nn.Identity(), model, data, settings=chosen)
    floats = to_float(data.images)
    loader = DataLoader(TensorDataset(floats, data.labels), batch_size=3)
    for images, labels in ((data.images, data.labels), (floats, data.labels), (loader, None)):
        same = purifiers.audit(nn.Identity(), model, images, labels, settings=chosen)
        assert [record.accuracy for record in same.records] == [record.accuracy for record in whole.records]
    with torch.inference_mode():
        assert audit(nn.Identity(), model, data, settings=chosen).records[1].accuracy == whole.records[1].accuracy
    assert f"{whole.records[1].accuracy:.1%}" in str(whole)


def test_a_mended_model_is_audited_anew(tmp_path: Path) -> None:
    """Though it answers as before for the first images: nothing of the old audit may come from the cache."""

    class Mendable(Linear):
        def __init__(self, mended: bool) -> None:
            super().__init__(2, SHAPE)
            self.mended = mended

        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits if self.mended else torch.where((images[:, 0, 0, 0] > 0.9)[:, None], -logits, logits)

    _, data = problem(8)
    data.images[:, 0, 0, 0] = torch.tensor([0, 0, 0, 0, 0, 255, 255, 255])
    data.labels[:] = Linear(2, SHAPE)(to_float(data.images)).argmax(1)
    chosen = settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=0.02)
    before, after = (audit(nn.Identity(), Mendable(mended), data, settings=chosen, cache=tmp_path) for mended in (False, True))
    assert before.clean("purifier").accuracy == 5 / 8
    assert after.clean("purifier").accuracy == 1


def test_bad_inputs_are_told() -> None:
    model, data = problem(4)
    for labels, message in [(data.labels + 5, "labels must be"), (data.labels.float(), "int64")]:
        with pytest.raises(InputError, match=message):
            audit(nn.Identity(), model, data.images, labels)
    for key, value in {"batch_size": 0, "seed": "a", "purifier_name": 5, "cache": 5}.items():
        with pytest.raises(InputError, match=key.split("_")[-1]):
            audit(nn.Identity(), model, data, **{key: value})
    with pytest.raises(InputError, match=r"purifier must keep .* returns shape \(2, 3, 8, 8\)"):
        audit(nn.Upsample(scale_factor=2), model, data)
    for given in ({5: 1}, {"limits": {"AA": 0}}, {"limits": {"AutoAttack": 5}}, {"limits": False}, {"views.full": 0}):
        with pytest.raises((ConfigError, InputError), match=r"string|limits|views"):
            audit(nn.Identity(), model, data, settings=given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the surrogate 'other' has 5 classes"):
        audit(nn.Identity(), model, data, surrogates={"other": Linear(5, SHAPE)})
    with pytest.raises(InputError, match="surrogates is a mapping"):
        audit(nn.Identity(), model, data, surrogates={"other": "cifar10-resnet56"})  # type: ignore[dict-item]


class NotANumber(nn.Module):
    """Gives images that are not finite where they were dark, so that no class can be told; argmax would say 0."""

    def forward(self, images: Tensor) -> Tensor:
        dark = images.flatten(1).mean(1) < 0.3
        return torch.where(dark.view(-1, 1, 1, 1), torch.full_like(images, float("nan")), images)


def test_what_is_not_finite_is_not_right() -> None:
    model, data = problem(6)
    zero = ImageSet("dark", data.images.clone(), torch.zeros(6, dtype=torch.int64), ("a", "b"))
    zero.images[2:] = 20
    found = audit(NotANumber(), model, zero, settings=settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=0.02))
    right = int((model(to_float(zero.images[:2])).argmax(1) == 0).sum())
    assert found.clean("purifier").accuracy == pytest.approx(right / 6)
    with pytest.raises(InputError, match="purifier returns images that are NaN"):
        audit(NotANumber(), model, zero.subset(torch.arange(2, 6)))


class Overflows(Linear):
    """Logits that are infinite where an attack has moved the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        moved = (images[:, 0, 0, 0] * 255 % 1 > 0.01).float().view(-1, 1)
        return super().forward(images) / (1 - moved)


def test_logits_that_are_not_finite_are_counted_where_they_appear() -> None:
    model, data = problem(6)
    dark = ImageSet("dark", data.images.clone(), data.labels, data.classes)
    dark.images[2:] = 20
    chosen = settings({"PGD": pgd(epsilon=0.0021)}, {"blind": ["PGD"]}, epsilon=0.0021)
    found = audit(NotANumber(), model, dark, settings=chosen)
    assert {(one.view, one.attack): "4 of 6" in one.message for one in found.warnings}[CLEAN, CLEAN]
    attacked = audit(nn.Identity(), Overflows(2, SHAPE), data, settings=chosen)
    assert attacked.clean("purifier").not_finite == 0
    assert {one.view for one in attacked.warnings} == {"blind", WORST}


def test_a_reported_attack_that_the_checks_beat_fails_a_check() -> None:
    """Three steps of nearly nothing leave every image; the checks' own attack in the same ball breaks all."""
    model, data = problem()
    epsilon = float(boundary_distances(model, to_float(data.images), data.labels, "linf").max()) * 1.1
    name = "the reported attack is the strongest"
    for step, views, failed in ((1e-6, "full", True), (epsilon / 4, "full", False), (1e-6, "blind", False)):
        weak = {"kind": "bim", "step_size": step, "num_steps": 10}
        chosen = settings({"BIM": weak}, {views: ["BIM"]}, epsilon=epsilon, check_images=30, limits={"BIM": 35})
        found = audit(nn.Identity(), model, data, settings=chosen)
        assert (name in {check.name for check in found.failed("purifier")}) == failed


class Casts(nn.Module):
    """``model`` with outputs of another type."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).to(self.dtype)


def test_other_types_than_float32_are_refused() -> None:
    model, data = problem(4)
    for purifier, classifier in (
        (nn.Identity(), Linear(2, SHAPE).half()),
        (nn.Identity(), Casts(model, torch.bfloat16)),
        (Casts(nn.Identity(), torch.float64), model),
    ):
        with pytest.raises((ConfigError, InputError), match=r"\.float\(\)"):
            audit(purifier, classifier, data)


def test_under_inference_mode_the_audit_finds_the_same() -> None:
    model, data = problem(12)
    chosen = settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=0.02, check_images=6)
    usual = audit(nn.Identity(), model, data, settings=chosen)
    with torch.inference_mode():
        images, labels = to_float(data.images), data.labels.clone()
        found = audit(nn.Identity(), model, images, labels, settings=chosen)
    assert [one.accuracy for one in found.records] == [one.accuracy for one in usual.records]
    assert found.checks == usual.checks and not found.warnings


def test_settings_may_be_a_mapping_and_names_are_checked() -> None:
    model, data = problem(4)
    plain = {"attacks": ALL_GONE | {"PGD": pgd()}, "views": dict.fromkeys((*VIEWS, TRANSFER), ()) | {"full": ["PGD"]}}
    found = audit(nn.Identity(), model, data, settings={**plain, "check_images": 0, "images": 3})
    assert found.clean("purifier").n == 3
    for arguments, message in [
        (("purifer",), "purifier 'purifer'; did you mean 'purifier'"),
        (("purifier", "l3"), "no norm 'l3'"),
        (("purifier", "l2", "whitebox"), "no group 'whitebox'; did you mean 'white-box'"),
    ]:
        with pytest.raises(InputError, match=message):
            found.worst(*arguments)
    with pytest.raises(InputError, match="did you mean 'images'"):
        audit(nn.Identity(), model, data, settings={"imags": 3})


def test_an_audit_is_written_and_read(tmp_path: Path) -> None:
    model, data = problem(4)
    found = audit(nn.Identity(), model, data, settings=settings({"PGD": pgd()}, {"full": ["PGD"]}, epsilon=0.02))
    found.write(tmp_path)
    assert Audit.read(tmp_path) == found
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        Audit.read(tmp_path)
    with pytest.raises(MissingFileError, match="purifiers audit"):
        Audit.read(tmp_path / "nothing")


def test_keys_of_settings_may_be_dotted_and_mappings_stay_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = problem()
    own = settings({"PGD": pgd(), "idle": pgd()}, {"full": ["PGD"]}).model_dump(mode="json")
    before = deepcopy(own)
    found = audit(nn.Identity(), model, data, settings={**own, "attacks.PGD.num_steps": 3, "images": 4})
    assert (found.settings["attacks"]["PGD"]["num_steps"], found.settings["images"]) == (3, 4)
    assert own == before
    assert "'idle' is in none" in capsys.readouterr().out
