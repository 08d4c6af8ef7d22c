"""Attack a classifier under each threat model, purify, and count."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from purifiers.attacks import VIEWS, Attack, distances
from purifiers.attacks.generate import Adversarial, generate
from purifiers.console import progress
from purifiers.data import ImageSet, slices, to_float
from purifiers.evaluation import metrics
from purifiers.evaluation.records import CLEAN, AttackWarning, Record
from purifiers.purifier import PurifiedClassifier, Purifier
from purifiers.seeds import seed_for


@dataclass(frozen=True)
class Evaluator:
    """One classifier and one set of test images, on which any number of purifiers is measured.

    Attributes:
        classifier: frozen; images in [0,1] -> logits.
        classifier_name: for the records.
        data: the test images, on the classifier's device.
        seed: decides the attacks' random choices.
        batch_size: images at once.
        cache: folder of adversarial examples; blind attacks are made once for all purifiers.
    """

    classifier: nn.Module
    classifier_name: str
    data: ImageSet
    seed: int = 0
    batch_size: int = 250
    cache: Path | None = None

    def evaluate(
        self,
        name: str,
        purifier: Purifier,
        attacks: Callable[[str], Mapping[str, Attack]],
        views: Sequence[str] = ("blind",),
        limit: Callable[[str, str], int | None] = lambda view, attack: None,
    ) -> tuple[list[Record], list[AttackWarning]]:
        """Measure one purifier: on clean images, then under every view and attack.

        Args:
            name: the purifier's, for the records.
            purifier: on the classifier's device.
            attacks: the attacks by name, for each view.
            views: names in :data:`purifiers.attacks.VIEWS`.
            limit: of (view, attack): on how many random images of the data; None for all.
        """
        defended = PurifiedClassifier(purifier, self.classifier)
        clean = Adversarial(self.data.images, {}, 0, 0.0)
        records = [self._measure(name, defended, CLEAN, CLEAN, None, clean, self.data)]
        warnings: list[AttackWarning] = []
        for view in views:
            for attack_name, attack in attacks(view).items():
                data = self.data.limited(limit(view, attack_name), seed_for(self.seed, "limit"))
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
        originals, undefended, purified_classes, psnrs, ssims, l2 = [], [], [], [], [], []
        with torch.no_grad():
            for batch in slices(len(data), self.batch_size):
                images, given = to_float(data.images[batch]), attacked.images[batch]
                given = to_float(given) if given.dtype == torch.uint8 else given
                purified = defended.purifier(given)
                originals.append(defended.classifier(images).argmax(1))
                undefended.append(defended.classifier(given).argmax(1))
                purified_classes.append(defended.classifier(purified).argmax(1))
                psnrs.append(metrics.psnr(purified, images))
                ssims.append(metrics.ssim(purified, images))
                l2.append(distances(images, given, "l2"))
        n, predicted = len(data), torch.cat(purified_classes)
        right = metrics.matches(predicted, data.labels)
        similarities = [value for value in ssims if value is not None]
        return Record(
            dataset=self.data.name,
            classifier=self.classifier_name,
            purifier=name,
            view=view,
            attack=attack_name,
            norm=None if attack is None else attack.norm,
            epsilon=None if attack is None else attack.epsilon,
            n=n,
            accuracy_undefended=metrics.matches(torch.cat(undefended), data.labels) / n,
            accuracy=right / n,
            agreement=metrics.matches(predicted, torch.cat(originals)) / n,
            ci95=metrics.wilson_interval(right, n),
            psnr=torch.cat(psnrs).mean().item(),
            ssim=torch.cat(similarities).mean().item() if similarities else None,
            l2=torch.cat(l2).median().item(),
            seconds=attacked.seconds,
        )
