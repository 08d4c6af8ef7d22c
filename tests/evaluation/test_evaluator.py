import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from purifiers import PurifiedClassifier, Purifier
from purifiers.attacks import FGSM
from purifiers.baselines import Adaptive, Noisy, Nothing
from purifiers.cache import Cache
from purifiers.data import ImageSet, to_float
from purifiers.errors import CheckpointError, MissingFileError
from purifiers.evaluation.evaluate import evaluate_run, find_examples
from purifiers.evaluation.evaluator import Evaluator
from purifiers.evaluation.metrics import measure_cost
from purifiers.evaluation.records import Record, Results
from purifiers.runs import Run, prepare_baselines


class Brightness(nn.Module):
    """Class 1 where the mean is above one half."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


class Shift(nn.Module):
    """A purifier that knows the attack: it takes back 0.1."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.by).clamp(0, 1)


@pytest.fixture
def data() -> ImageSet:
    """Dark images of class 0, the nearest of which is 0.06 from the boundary; the fourth is mislabelled."""
    levels = torch.tensor([60, 100, 112, 112], dtype=torch.uint8)
    images = levels.view(4, 1, 1, 1).expand(4, 3, 12, 12).contiguous()
    return ImageSet("grey", images, torch.tensor([0, 0, 0, 1]), ("dark", "bright"))


def test_every_number_of_a_record_is_what_it_says(data: ImageSet) -> None:
    evaluator = Evaluator(Brightness(), "brightness", data)
    attack = FGSM(epsilon=0.1)  # adds 0.1 everywhere to class 0, takes 0.1 from the mislabelled image
    (clean, attacked), warnings = evaluator.evaluate("shift", Purifier(Shift(-0.1)), lambda view: {"FGSM": attack})
    assert warnings == []
    assert (clean.view, clean.attack, clean.norm, clean.epsilon) == ("none", "none", None, None)
    assert (clean.accuracy_undefended, clean.accuracy, clean.agreement) == (0.75, 0.75, 1.0)
    assert clean.psnr == pytest.approx(20, abs=1e-3)
    assert clean.l2 == 0
    assert (attacked.view, attacked.attack, attacked.norm, attacked.epsilon) == ("blind", "FGSM", "linf", 0.1)
    # With 0.1 more, levels 60, 100 and 112 of 255 become 0.335, 0.492 and 0.539; the mislabelled image goes to 0.339.
    assert attacked.accuracy_undefended == 0.5
    assert attacked.accuracy == 0.75
    assert attacked.agreement == 1.0
    assert attacked.l2 == pytest.approx(0.1 * (3 * 144) ** 0.5, rel=1e-4)
    assert attacked.ci95[0] < 0.75 < attacked.ci95[1]
    assert attacked.n == 4


class InPlace(Brightness):
    """The same logits; its first step changes the images that it gets."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.25) + 0.25)


def test_a_classifier_that_works_in_place_spoils_no_number(data: ImageSet) -> None:
    attacks = {"FGSM": FGSM(epsilon=0.1)}
    for purifier in (Purifier(Shift(-0.1)), nn.Identity()):
        usual, other = (
            Evaluator(classifier, "x", data).evaluate("x", purifier, lambda view: attacks, ("blind", "full"))[0]
            for classifier in (Brightness(), InPlace())
        )
        for one, same in zip(usual, other, strict=True):
            assert same == one.model_copy(update={"seconds": same.seconds})


def test_agreement_and_accuracy_are_different_things(data: ImageSet) -> None:
    """A purifier that makes everything bright is right on the mislabelled image alone, and agrees on nothing."""
    evaluator = Evaluator(Brightness(), "brightness", data)
    (clean,), _ = evaluator.evaluate("bright", Purifier(Shift(0.5)), lambda view: {})
    assert (clean.accuracy, clean.agreement) == (0.25, 0.0)


def test_views_decide_what_the_attacker_differentiates(data: ImageSet) -> None:
    class Mirror(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 0.9 - images  # takes brightness for darkness: the blind attack goes the wrong way

    evaluator = Evaluator(Brightness(), "brightness", ImageSet("grey", data.images[:3], data.labels[:3], data.classes))
    records, _ = evaluator.evaluate("mirror", Purifier(Mirror()), lambda view: {"FGSM": FGSM(epsilon=0.05)}, ("blind", "full"))
    by_view = {record.view: record for record in records}
    clean = to_float(evaluator.data.images).mean(dim=(1, 2, 3))
    assert by_view["blind"].accuracy == ((0.9 - (clean + 0.05)) <= 0.5).sum().item() / 3
    assert by_view["full"].accuracy == ((0.9 - (clean - 0.05)) <= 0.5).sum().item() / 3
    assert by_view["full"].accuracy < by_view["blind"].accuracy


def test_examples_are_images_that_the_attack_changes(data: ImageSet) -> None:
    evaluator = Evaluator(Brightness(), "brightness", data)
    examples = find_examples(evaluator, Purifier(Shift(-0.1)), FGSM(epsilon=0.1))
    assert examples.changed
    assert all(examples.original.correct)
    assert not any(examples.adversarial.correct)
    assert all(examples.purified.correct)
    assert examples.original.classes == ["dark"] * len(examples.original.classes)
    assert examples.adversarial.classes == ["bright"] * len(examples.original.classes)
    nothing = find_examples(evaluator, Purifier(Shift(-0.1)), FGSM(epsilon=0.0))
    assert not nothing.changed
    assert len(nothing.original.images) == 3  # where no attack succeeds, images that were right


def test_examples_of_images_that_are_sorted_by_class_are_of_all_classes() -> None:
    levels = torch.arange(60, 190, dtype=torch.uint8)
    images = levels.view(-1, 1, 1, 1).expand(-1, 3, 12, 12).contiguous()
    data = ImageSet("sorted", images, (levels > 127).long(), ("dark", "bright"))
    examples = find_examples(Evaluator(Brightness(), "brightness", data), Purifier(Nothing()), FGSM(epsilon=0.0), limit=20)
    assert set(examples.original.classes) == {"dark", "bright"}


def test_variants_are_measured_on_random_images_within_the_limits(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purifiers.evaluation.evaluate.BLOCK", 12)
    limits = tiny_run.recipe.evaluation.model_copy(update={"limits": {"PGD": 6}})
    recipe = tiny_run.recipe.model_copy(update={"evaluation": limits})
    run = copy.copy(tiny_run)
    run.recipe, run.variants = recipe, {"same": tiny_run.purifiers["student"]}
    results, _ = evaluate_run(run)
    counted = {record.attack: record.n for record in results.records if record.purifier == "variant: same"}
    assert counted == {"none": 12, "PGD": 6, "FGSM": 12}


def test_a_whole_run_is_measured_and_read_back(tiny_run: Run, tmp_path: Path) -> None:
    results, examples = evaluate_run(tiny_run)
    rows = {(record.purifier, record.view, record.attack) for record in results.records}
    purifiers = set(tiny_run.purifiers)
    assert {(name, "none", "none") for name in purifiers} <= rows
    assert {(name, "blind", attack) for name in purifiers for attack in ("PGD", "FGSM")} <= rows
    assert {row for row in rows if row[1] == "full"} == {("student", "full", "PGD")}
    assert {record.n for record in results.records if record.purifier != "baseline: SOAP"} == {24}
    spent = [record["seconds"] for history in tiny_run.histories.values() for record in history]
    assert results.seconds["training"] == sum(spent) > 0
    assert set(results.training) == set(tiny_run.histories)
    assert 1 <= len(examples.original.images) <= 10
    results.write(tmp_path)
    assert Results.read(tmp_path) == results
    plain = json.loads((tmp_path / "results.json").read_text())
    assert {"recipe", "seed", "versions", "hardware", "records"} <= set(plain)
    again, _ = evaluate_run(tiny_run)
    assert [r.model_dump(exclude={"seconds"}) for r in again.records] == [
        r.model_dump(exclude={"seconds"}) for r in results.records
    ]


def test_baselines_are_measured_beside_ours(tiny_run: Run, tmp_path: Path) -> None:
    run = replace(tiny_run, folder=tmp_path, baselines={}, histories={})
    prepare_baselines(run)
    results, _ = evaluate_run(run)
    rows = {(record.purifier, record.attack): record for record in results.records if record.view in ("none", "blind")}
    for title in ("NRP", "JPEG"):
        for attack in ("none", "PGD", "FGSM"):
            ours, theirs = rows["student", attack], rows[f"baseline: {title}", attack]
            # The same adversarial examples in front of the same classifier.
            same = ("n", "classifier", "accuracy_undefended", "epsilon", "l2")
            assert all(getattr(ours, name) == getattr(theirs, name) for name in same)
    soap = [rows["baseline: SOAP", attack] for attack in ("none", "PGD", "FGSM")]
    assert {(record.n, record.classifier) for record in soap} == {(12, "resnet8 of SOAP")}
    assert soap[1].accuracy_undefended <= soap[0].accuracy_undefended
    assert set(results.costs) == {"classifier", "student", "baseline: NRP", "baseline: SOAP", "baseline: JPEG"}
    assert results.costs["student"].parameters == results.parameters
    assert results.costs["baseline: JPEG"].parameters == results.costs["baseline: JPEG"].flops == 0


def test_a_purifier_that_draws_random_numbers_is_measured_the_same_twice(data: ImageSet) -> None:
    evaluator = Evaluator(Brightness(), "brightness", data, seed=3)
    noisy = Purifier(Noisy(Nothing(), sigma=0.1, epsilon=1))
    state = torch.random.get_rng_state()
    first, second = (
        evaluator.evaluate("noise", noisy, lambda view: {"FGSM": FGSM(epsilon=0.1)}, ("blind", "full"))[0] for _ in range(2)
    )
    assert [r.model_dump(exclude={"seconds"}) for r in first] == [r.model_dump(exclude={"seconds"}) for r in second]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_the_classifier_says_of_one_set_is_not_taken_for_another(data: ImageSet) -> None:
    evaluator = Evaluator(Brightness(), "brightness", data)
    purifier = Purifier(Shift(0.0))
    assert evaluator.evaluate("none", purifier, lambda view: {})[0][0].accuracy_undefended == 0.75
    other = replace(evaluator, data=replace(data, images=255 - data.images))
    assert other.evaluate("none", purifier, lambda view: {})[0][0].accuracy_undefended == 0.25


def test_subsets_of_one_length_are_not_taken_for_each_other(data: ImageSet) -> None:
    """As the survivors of two attacks of a cascade are: the first two images, and the last two, one of which is mislabelled."""
    evaluator = Evaluator(Brightness(), "brightness", data)
    defended = PurifiedClassifier(Purifier(Shift(0.0)), Brightness())
    bright = replace(data, images=255 - data.images)
    for which, undefended in ((data.subset(torch.tensor([0, 1])), 1.0), (bright.subset(torch.tensor([2, 3])), 0.5)):
        record, _ = evaluator.measure("nothing", defended, which)
        assert (record.agreement, record.accuracy_undefended) == (1.0, undefended)


def test_what_was_measured_is_not_measured_again(data: ImageSet, tmp_path: Path) -> None:
    class Counted(Shift):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            Counted.calls += 1
            return super().forward(images)

    def measure(by: float, title: str, folder: Path = tmp_path) -> list[Record]:
        Counted.calls = 0
        evaluator = Evaluator(Brightness(), "brightness", data, cache=Cache(folder))
        return evaluator.evaluate(title, Purifier(Counted(by)), lambda view: {"FGSM": FGSM(epsilon=0.1)})[0]

    first = measure(-0.1, "first")
    measuring = Counted.calls
    again = measure(-0.1, "again")
    assert Counted.calls < measuring  # but for the look at two images that tells networks apart
    assert again == [record.model_copy(update={"purifier": "again"}) for record in first]
    other = measure(0.2, "other")
    assert Counted.calls == measuring and other[0].accuracy != first[0].accuracy
    for path in tmp_path.glob("counted-*"):
        path.write_bytes(path.read_bytes()[:-9])
    assert measure(-0.1, "first") == first and Counted.calls == measuring


def test_the_cost_of_a_convolution_by_hand() -> None:
    cost = measure_cost(nn.Conv2d(3, 5, 3, padding=1), torch.rand(2, 3, 8, 8))
    assert (cost.parameters, cost.flops, cost.batch_size) == (5 * 27 + 5, 2 * 27 * 5 * 64, 2)
    assert cost.images_per_second > 0
    # A step of adaptive use: forward, and backward to the image; then the pass.
    network = Adaptive(nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False), num_steps=1)
    assert measure_cost(network, torch.rand(2, 3, 8, 8)).flops == 3 * (2 * 27 * 3 * 64)


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no results\.json"):
        Results.read(tmp_path)
    (tmp_path / "results.json").write_text('{"records": ')
    with pytest.raises(CheckpointError, match="damaged"):
        Results.read(tmp_path)


def test_a_limited_attack_is_run_on_a_random_subset_of_its_own(data: ImageSet) -> None:
    evaluator = Evaluator(Brightness(), "brightness", data, seed=3)
    attacks = {"all": FGSM(epsilon=0.1), "some": FGSM(epsilon=0.1)}
    limits = {"some": 3}
    records, _ = evaluator.evaluate(
        "shift", Purifier(Shift(-0.1)), lambda view: attacks, limit=lambda view, attack: limits.get(attack)
    )
    assert [(record.attack, record.n) for record in records] == [("none", 4), ("all", 4), ("some", 3)]
    assert records[2].accuracy in (2 / 3, 1.0)
    assert records[2].agreement == 1.0
