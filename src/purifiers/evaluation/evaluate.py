"""Attack a classifier under each threat model, purify, and count."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.attacks import VIEWS, Attack, distances
from purifiers.attacks.generate import Adversarial, generate
from purifiers.console import progress
from purifiers.data import ImageSet, slices, to_float
from purifiers.evaluation import metrics
from purifiers.evaluation.records import CLEAN, AttackWarning, Record
from purifiers.files import digest, write_text
from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.registry import fingerprint
from purifiers.seeds import reproducible, seed_for


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
        seen: what the classifier alone says of this data, asked once for all purifiers.
    """

    classifier: nn.Module
    classifier_name: str
    data: ImageSet
    seed: int = 0
    batch_size: int = 250
    cache: Path | None = None
    seen: dict[tuple[str, str, int], Tensor] = field(init=False, default_factory=dict, compare=False)

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
        limit_seed = seed_for(self.seed, "limit")
        few = self.data.limited(at_most, limit_seed)
        clean = Adversarial(few.images, {}, 0, 0.0)
        records = [self._measure(name, defended, CLEAN, CLEAN, None, clean, few)]
        warnings: list[AttackWarning] = []
        for view in views:
            for attack_name, attack in attacks(view).items():
                counts = [count for count in (limit(view, attack_name), at_most) if count is not None]
                data = self.data.limited(min(counts, default=None), limit_seed)
                with progress(f"{name}: {attack_name} ({view})", len(data)) as advance:
                    found = generate(
                        attack,
                        VIEWS[view](defended),
                        data,
                        seed=self.seed,
                        batch_size=self.batch_size,
                        cache=self.cache,
                        advance=advance,
                    )
                records.append(self._measure(name, defended, view, attack_name, attack, found, data))
                for text, count in found.warnings.items():
                    said = f"{text} (in {count} of {found.batches} batches of up to {self.batch_size} images)"
                    warnings.append(AttackWarning(view=view, attack=attack_name, message=said))
        return records, warnings

    def _measure(
        self,
        name: str,
        defended: PurifiedClassifier,
        view: str,
        attack_name: str,
        attack: Attack | None,
        attacked: Adversarial,
        data: ImageSet,
    ) -> Record:
        path = self._path(defended, attacked, data)
        about = {
            "dataset": self.data.name,
            "classifier": self.classifier_name,
            "purifier": name,
            "view": view,
            "attack": attack_name,
            "norm": None if attack is None else attack.norm,
            "epsilon": None if attack is None else attack.epsilon,
            "n": len(data),
            "seconds": attacked.seconds,
        }
        if path is not None and path.is_file():
            try:
                return Record(**json.loads(path.read_text()) | about)
            except (ValueError, TypeError):
                pass  # damaged, or of another version: measured again, and replaced
        # Under the other views an attack is another for each purifier.
        key = attack_name if view in (CLEAN, "blind") else f"{attack_name} on {name}"
        measured = self._count(defended, attacked, data, self._classes_of(view, key, attacked.images))
        if path is not None:
            write_text(path, json.dumps(measured))
        return Record(**measured | about)

    def _path(self, defended: PurifiedClassifier, attacked: Adversarial, data: ImageSet) -> Path | None:
        """Where this measurement is kept, so that an evaluation that was stopped goes on and another does not repeat it."""
        if self.cache is None:
            return None
        # The outputs tell networks apart that differ in plain Python attributes only.
        with torch.no_grad(), reproducible(self.seed, data.images.device):
            outputs = defended(to_float(data.images[:2]))
        content = (attacked.images, data.images, data.labels, self.seed, self.batch_size, torch.__version__)
        return self.cache / f"measured-{digest(fingerprint(defended), outputs, *content)[:32]}.json"

    def _count(self, defended: PurifiedClassifier, attacked: Adversarial, data: ImageSet, undefended: Tensor) -> dict[str, Any]:
        """What a record holds besides names."""
        originals = self._classes_of(CLEAN, CLEAN, data.images)
        predictions, psnrs, ssims, l2 = [], [], [], []
        with torch.no_grad(), reproducible(seed_for(self.seed, "purifier"), data.images.device):
            for batch in slices(len(data), self.batch_size):
                images, given = to_float(data.images[batch]), _as_float(attacked.images[batch])
                purified = defended.purifier(given)
                predictions.append(defended.classifier(purified).argmax(1))
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
        }

    def _classes_of(self, view: str, attack: str, images: Tensor) -> Tensor:
        """What the classifier alone makes of ``images``, (N,); a subset of another size is another entry."""
        key = (view, attack, len(images))
        if key not in self.seen:
            with torch.no_grad():
                parts = [self.classifier(_as_float(images[batch])).argmax(1) for batch in slices(len(images), self.batch_size)]
            self.seen[key] = torch.cat(parts)
        return self.seen[key]


def _as_float(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images
