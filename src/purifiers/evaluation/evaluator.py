"""Check the models and images that a user passes; attack a classifier under each threat model, purify, and count."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks import VIEWS, Attack, distances
from purifiers.attacks.base import frozen
from purifiers.attacks.generate import FEW, Adversarial, Parts, generate
from purifiers.attacks.views import Expectation
from purifiers.cache import Cache, State
from purifiers.classifiers.load import adapt_classifier, check_form, completed
from purifiers.classifiers.probes import logits_of
from purifiers.console import progress
from purifiers.data import ImageSet, as_image_set, slices, to_float
from purifiers.device import in_parts
from purifiers.errors import InputError
from purifiers.evaluation import metrics
from purifiers.evaluation.records import AttackWarning, Record
from purifiers.forecast import Forecast, current
from purifiers.purifier import PurifiedClassifier
from purifiers.seeds import reproducible, seed_for
from purifiers.storage import digest
from purifiers.weights import MEMORY

LOOK = 2
"""Images that models are tried on."""
Among = tuple[ImageSet, Tensor]
"""Images, and which of them are meant, bool (N,), on the CPU."""
Measured = tuple[Record, Tensor]
"""A record, and which images are right after purification, bool (N,), on the CPU."""


@dataclass(frozen=True)
class Evaluator:
    """One classifier and one set of test images, on which any number of purifiers is measured."""

    classifier: nn.Module  # frozen; images in [0,1] -> logits
    classifier_name: str  # for the records
    data: ImageSet  # on the classifier's device
    seed: int = 0  # decides the attacks' random choices
    batch_size: int = 250
    cache: Cache = field(default_factory=lambda: Cache(None))  # blind attacks are made once for all purifiers
    undefended: dict[str, Tensor] = field(init=False, default_factory=dict, compare=False)  # classes, by the images' digest

    def __post_init__(self) -> None:
        for name, value, least in (("batch_size", self.batch_size, 1), ("seed", self.seed, 0)):
            if type(value) is not int or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}; got {value!r}")

    def evaluate(
        self,
        name: str,
        purifier: nn.Module,
        attacks: Callable[[str], Mapping[str, Attack]],
        views: Sequence[str] = ("blind",),
        limit: Callable[[str, str], int | None] = lambda view, attack: None,
        at_most: int | None = None,
    ) -> tuple[list[Record], list[AttackWarning]]:
        """Measure one purifier: on clean images, then under every view with the attacks, by name, that ``attacks`` has for it.

        ``limit`` of (view, attack): on how many random images of the data, None for all; ``at_most``: a limit for everything,
        clean images too, for a purifier that is slow.
        """
        defended = PurifiedClassifier(purifier, self.classifier)
        records = [self.measure(name, defended, self.limited(at_most))[0]]
        warnings: list[AttackWarning] = []
        for view in dict.fromkeys(views):
            for attack_name, attack in attacks(view).items():
                counts = [count for count in (limit(view, attack_name), at_most) if count is not None]
                data = self.limited(min(counts, default=None))
                found, noted = self.attack(name, view, VIEWS[view](defended), attack_name, attack, data)
                if found.left is not None:  # the results are of whoever finds all
                    continue
                about: dict[str, Any] = {"view": view, "attack": attack_name, "norm": attack.norm, "epsilon": attack.epsilon}
                records.append(self.measure(name, defended, data, found, **about)[0])
                warnings += noted
        return records, warnings

    def limited(self, count: int | None) -> ImageSet:
        """``count`` random images of the data, None for all; a smaller subset is a part of every larger one."""
        return self.data.limited(count, seed_for(self.seed, "limit"))

    def attack(
        self, name: str, view: str, model: nn.Module, title: str, attack: Attack, data: ImageSet, parts: Parts | None = None
    ) -> tuple[Adversarial, list[AttackWarning]]:
        """Run ``attack`` on ``model``, the purifier ``name`` as the attacker sees it under ``view``; see :func:`generate`."""
        # The graphs of all draws are in memory at once.
        size = max(1, self.batch_size // (model.draws if isinstance(model, Expectation) else 1))
        with progress(f"{name}: {title} ({view})", len(data)) as advance:
            options: dict[str, Any] = {"seed": self.seed, "batch_size": size, "cache": self.cache}
            found = generate(attack, model, data, **options, parts=parts, advance=advance)
        among = f"of {found.batches} batches of up to {size} images)"
        messages = [f"{text} (in {count} {among}" for text, count in found.warnings.items()]
        return found, [AttackWarning(view=view, attack=title, message=message) for message in messages]

    def measure(
        self,
        name: str,
        defended: PurifiedClassifier,
        data: ImageSet,
        attacked: Adversarial | None = None,
        among: Among | None = None,
        **about: Any,
    ) -> Measured:
        """Count one purifier's results on ``attacked``, adversarial versions of ``data``, by default on ``data`` itself.

        ``about`` is the record's view, attack, norm and epsilon. ``among``, for a random purifier: the full set, and the mask
        of ``data`` in it, so that an image gets the same draw in every subset.
        """
        attacked = attacked or Adversarial(data.images)
        names: dict[str, Any] = {"dataset": self.data.name, "classifier": self.classifier_name, "purifier": name}
        names["labels_predicted"] = data.labels_predicted

        def as_record(state: State) -> Measured:
            right = state.pop("right")
            if len(right) != len(data):
                raise ValueError("other images")
            return Record(**names, n=len(data), seconds=attacked.seconds, **about, **state), right

        whole, plan = None if among is None else (among[0].images, among[1]), current()
        if plan and not self.cache.has("counted"):
            return as_record(self._foresee(plan, name, defended, data))
        key = self.cache.key(defended, data.images, attacked.images, data.labels, self.seed, self.batch_size, whole)
        found = self.cache.load("counted", key, as_record)
        if plan and not found:
            return as_record(self._foresee(plan, name, defended, data))
        return found or as_record(self.cache.save("counted", key, self._count(defended, attacked, data, among)))

    def _foresee(self, plan: Forecast, name: str, defended: PurifiedClassifier, data: ImageSet) -> dict[str, Any]:
        """What :meth:`_count` would take is noted; the counts are of few images."""

        def count(size: int) -> dict[str, Any]:
            few = data.subset(torch.arange(size, device=data.images.device) % len(data))
            self.undefended.clear()  # the classes of attacked images are never known before
            return self._count(defended, Adversarial(few.images), few, None)

        kind = "counted", repr(defended), data.images.shape[1:]
        pace = plan.pace(kind, count, self.batch_size)
        plan.note(pace.seconds(len(data), len(data) / self.batch_size), len(data), f"{name}: purified")
        state = plan.once((name, *kind), lambda: count(min(FEW, len(data))))
        return state | {"right": state["right"][torch.arange(len(data)) % len(state["right"])]}

    def _count(
        self, defended: PurifiedClassifier, attacked: Adversarial, data: ImageSet, among: Among | None
    ) -> dict[str, Any]:
        originals, undefended = self.predicted(data.images), self.predicted(attacked.images)
        predictions, psnrs, ssims, l2 = [], [], [], []
        whole, meant = among or (data, torch.ones(len(data), dtype=torch.bool))
        done = 0
        with torch.no_grad(), reproducible(seed_for(self.seed, "purifier"), data.images.device):
            for batch in slices(len(whole), self.batch_size):
                inputs, here = to_float(whole.images[batch]), meant[batch].to(whole.images.device)
                own = slice(done, done := done + int(meant[batch].sum()))
                images, adversarial = to_float(data.images[own]), attacked.images[own]
                inputs[here] = to_float(adversarial) if adversarial.dtype == torch.uint8 else adversarial
                purified = in_parts(defended.purifier, inputs)[here]
                if len(images):
                    predictions.append(metrics.classes(in_parts(defended.classifier, purified.clone())))
                    psnrs.append(metrics.psnr(purified, images))
                    ssims.append(metrics.ssim(purified, images))
                    l2.append(distances(images, inputs[here], "l2"))
        n, predicted = len(data), torch.cat(predictions)
        right = metrics.matches(predicted, data.labels)
        similarities = [value for value in ssims if value is not None]
        return {
            "accuracy_undefended": metrics.matches(undefended, data.labels) / n,
            "accuracy": right / n,
            "agreement": metrics.matches(predicted, originals) / n,
            "ci95": metrics.wilson_interval(right, n),
            "psnr": torch.cat(psnrs).mean().item(),
            "ssim": torch.cat(similarities).mean().item() if similarities else None,
            "l2": torch.cat(l2).median().item(),
            "not_finite": int((predicted < 0).sum()),
            "right": (predicted == data.labels).cpu(),
        }

    def predicted(self, images: Tensor) -> Tensor:
        """The classifier's classes of ``images``, int64 (N,); -1 where no logit is finite."""
        key = digest(images)
        if key not in self.undefended:
            self.undefended[key] = metrics.predict(self.classifier, images, self.batch_size)
        return self.undefended[key]


@contextmanager
def prepared(
    purifier: nn.Module, classifier: nn.Module, images: ImageSet | Tensor | Iterable[Any], labels: Tensor | None, *names: str
) -> Iterator[tuple[PurifiedClassifier, ImageSet]]:
    """What a user passed, ready for attacks: the models frozen, the classifier adapted and checked, and the images beside them.
    ``names`` are for the records. Raises InputError for what is no such argument, and as :func:`adapt_classifier` does."""
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"a purifier's or classifier's name must be a string; got {names}")
    with torch.inference_mode(False):  # whatever the caller has: attacks take gradients
        passed, source = PurifiedClassifier(purifier, classifier), f"{MEMORY}:{type(classifier).__name__}"
        check_form(classifier, source)
        data = as_image_set(images, labels).to(next((one.device for one in passed.parameters()), torch.device("cpu")))
        with frozen(passed):
            adapted = adapt_classifier(classifier, source, data)
            yield PurifiedClassifier(purifier, adapted), completed(data, adapted)


def check_defended(name: str, defended: PurifiedClassifier, data: ImageSet) -> None:
    """Try a purifier and its classifier on the first images; raises InputError if a model fails, or if its outputs have the
    wrong type or shape or are not finite."""
    images = to_float(data.images[:LOOK])
    with torch.no_grad(), frozen(defended):
        purified = defended.purifier(images)
        if not isinstance(purified, Tensor) or purified.shape != images.shape:
            got = f"shape {tuple(purified.shape)}" if isinstance(purified, Tensor) else f"a {type(purified).__name__}"
            raise InputError(f"{name} must keep the shape of images, {tuple(images.shape)}; it returns {got}")
        if purified.dtype != images.dtype:
            raise InputError(f"{name} returns {purified.dtype} images; expected {images.dtype}: convert them with .float()")
        if not purified.isfinite().all():
            raise InputError(f"{name} returns images that are NaN or infinite for the first images")
        logits_of(f"the classifier behind {name}", defended.classifier, purified)
