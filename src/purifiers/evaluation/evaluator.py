"""Attack a classifier under each threat model, purify, and count."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks import VIEWS, Attack, distances
from purifiers.attacks.generate import Adversarial, generate
from purifiers.attacks.views import Expectation
from purifiers.console import progress
from purifiers.data import ImageSet, slices, to_float
from purifiers.evaluation import metrics
from purifiers.evaluation.records import CLEAN, AttackWarning, Record
from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.registry import fingerprint
from purifiers.seeds import reproducible, seed_for
from purifiers.storage import digest, write_text

Among = tuple[ImageSet, Tensor]
"""Images, and places among them, int64 (N,), on the CPU."""


@dataclass(frozen=True)
class Evaluator:
    """One classifier and one set of test images, on which any number of purifiers is measured.

    Attributes:
        classifier: frozen; images in [0,1] -> logits.
        classifier_name: for the records.
        data: the test images, on the classifier's device.
        seed: decides the attacks' random choices.
        batch_size: images at once.
        cache: folder of adversarial examples, where blind attacks are made once for all purifiers, and of measurements.
        seen: what the classifier alone says of images, by their digest; asked once for all purifiers.
    """

    classifier: nn.Module
    classifier_name: str
    data: ImageSet
    seed: int = 0
    batch_size: int = 250
    cache: Path | None = None
    seen: dict[str, Tensor] = field(init=False, default_factory=dict, compare=False)

    def evaluate(
        self,
        name: str,
        purifier: Purifier,
        attacks: Callable[[str], Mapping[str, Attack]],
        views: Sequence[str] = ("blind",),
        limit: Callable[[str, str], int | None] = lambda view, attack: None,
        at_most: int | None = None,
    ) -> tuple[list[Record], list[AttackWarning]]:
        """Measure one purifier: on clean images, then under every view and attack.

        Args:
            name: the purifier's, for the records.
            purifier: on the classifier's device.
            attacks: the attacks by name, for each view.
            views: names in :data:`purifiers.attacks.VIEWS`.
            limit: of (view, attack): on how many random images of the data; None for all.
            at_most: a limit for everything, clean images too, for a purifier that is slow.
        """
        defended = PurifiedClassifier(purifier, self.classifier)
        few = self.limited(at_most)
        records = [self.measure(name, defended, few)[0]]
        warnings: list[AttackWarning] = []
        for view in views:
            for attack_name, attack in attacks(view).items():
                counts = [count for count in (limit(view, attack_name), at_most) if count is not None]
                data = self.limited(min(counts, default=None))
                found, noted = self.attack(name, view, VIEWS[view](defended), attack_name, attack, data)
                ball = (attack.norm, attack.epsilon)
                records.append(self.measure(name, defended, data, view, attack_name, ball, found)[0])
                warnings += noted
        return records, warnings

    def limited(self, count: int | None) -> ImageSet:
        """``count`` random images of the data, None for all; a smaller subset is a part of every larger one."""
        return self.data.limited(count, seed_for(self.seed, "limit"))

    def attack(
        self, name: str, view: str, model: nn.Module, attack_name: str, attack: Attack, data: ImageSet
    ) -> tuple[Adversarial, list[AttackWarning]]:
        """Run ``attack`` on ``model``, what the attacker has of the purifier ``name`` under ``view``.

        Raises:
            AttackError, InputError: see :func:`generate`.
        """
        # The graphs of all draws are in memory at once.
        draws = model.draws if isinstance(model, Expectation) else 1
        at_once = max(1, self.batch_size // draws)
        with progress(f"{name}: {attack_name} ({view})", len(data)) as advance:
            found = generate(
                attack,
                model,
                data,
                seed=self.seed,
                batch_size=at_once,
                cache=self.cache,
                advance=advance,
            )
        said = [
            f"{text} (in {count} of {found.batches} batches of up to {at_once} images)"
            for text, count in found.warnings.items()
        ]
        return found, [AttackWarning(view=view, attack=attack_name, message=text) for text in said]

    def measure(
        self,
        name: str,
        defended: PurifiedClassifier,
        data: ImageSet,
        view: str = CLEAN,
        attack_name: str = CLEAN,
        ball: tuple[str, float | None] | None = None,
        attacked: Adversarial | None = None,
        among: Among | None = None,
    ) -> tuple[Record, Tensor]:
        """The record of one purifier on adversarial versions of ``data``, or on ``data`` itself where none are given; and which
        images are right after purification, bool (N,), on the CPU. ``ball``: the attack's norm and epsilon.

        ``among``: for a random purifier, the images that ``data`` is a part of, and its places there. What is drawn for an
        image is then what is drawn for its place, whatever subset is asked about."""
        attacked = attacked or Adversarial(data.images, {}, 0, 0.0)
        path = self._path(defended, attacked, data, among)
        about = {
            "dataset": self.data.name,
            "classifier": self.classifier_name,
            "purifier": name,
            "view": view,
            "attack": attack_name,
            "norm": ball and ball[0],
            "epsilon": ball and ball[1],
            "n": len(data),
            "seconds": attacked.seconds,
        }
        if path is not None and path.is_file():
            try:
                return _as_record(json.loads(path.read_text()), about)
            except (KeyError, ValueError, TypeError, AttributeError):
                pass  # damaged, or of another version: measured again, and replaced
        measured = self._count(defended, attacked, data, among)
        if path is not None:
            write_text(path, json.dumps(measured))
        return _as_record(measured, about)

    def _path(self, defended: PurifiedClassifier, attacked: Adversarial, data: ImageSet, among: Among | None) -> Path | None:
        """Where this measurement is kept, so that an evaluation that was stopped goes on and another does not repeat it."""
        if self.cache is None:
            return None
        # The outputs tell networks apart that differ in plain Python attributes only.
        with torch.no_grad(), reproducible(self.seed, data.images.device):
            outputs = defended(to_float(data.images[:2]))
        content = [attacked.images, data.images, data.labels, self.seed, self.batch_size, torch.__version__]
        if among is not None:
            content += [among[0].images, among[1]]
        return self.cache / f"counted-{digest(fingerprint(defended), outputs, *content)[:32]}.json"

    def _count(
        self, defended: PurifiedClassifier, attacked: Adversarial, data: ImageSet, among: Among | None
    ) -> dict[str, Any]:
        """What a record holds besides names; under ``right`` a digit for each image."""
        originals, undefended = self._classes_of(data.images), self._classes_of(attacked.images)
        predictions, psnrs, ssims, l2 = [], [], [], []
        with torch.no_grad(), reproducible(seed_for(self.seed, "purifier"), data.images.device):
            for images, given, purified in self._purified(defended, attacked, data, among):
                predictions.append(metrics.classes(defended.classifier(purified)))
                psnrs.append(metrics.psnr(purified, images))
                ssims.append(metrics.ssim(purified, images))
                l2.append(distances(images, given, "l2"))
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
            "right": "".join(map(str, (predicted == data.labels).int().tolist())),
        }

    def _purified(
        self, defended: PurifiedClassifier, attacked: Adversarial, data: ImageSet, among: Among | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of originals, what is given to the purifier, and what it makes of that."""
        whole, places = among if among is not None else (data, torch.arange(len(data)))
        row = torch.full((len(whole),), -1).index_put_((places,), torch.arange(len(data)))
        for batch in slices(len(whole), self.batch_size):
            given = to_float(whole.images[batch])
            here = (row[batch] >= 0).to(given.device)
            own = row[batch][row[batch] >= 0].to(given.device)
            given[here] = _as_float(attacked.images[own])
            purified = defended.purifier(given)
            if here.any():
                yield to_float(data.images[own]), given[here], purified[here]

    def _classes_of(self, images: Tensor) -> Tensor:
        """What the classifier alone makes of ``images``, (N,)."""
        key = digest(images)
        if key not in self.seen:
            with torch.no_grad():
                parts = [self.classifier(_as_float(images[batch])) for batch in slices(len(images), self.batch_size)]
            self.seen[key] = metrics.classes(torch.cat(parts))
        return self.seen[key]


def _as_record(measured: dict[str, Any], about: dict[str, Any]) -> tuple[Record, Tensor]:
    digits = measured["right"]
    right = torch.tensor([digit == "1" for digit in digits], dtype=torch.bool)
    if len(right) != about["n"]:
        raise ValueError(f"{len(right)} of {about['n']} images")
    return Record(**{key: value for key, value in measured.items() if key != "right"} | about), right


def _as_float(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images
