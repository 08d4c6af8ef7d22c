"""Pretrain a robust encoder, then a decoder on the classifiers' loss, before the teachers.

Where the attacker differentiates through both, a purifier in front of a fragile classifier does not learn from random weights.
An encoder that is trained as a small robust classifier (Madry et al. 2018) gives it a latent that attacks hardly move.
"""

from typing import Self, cast

from torch import Tensor, nn

from purifiers.networks.cae import CAE, Verdict
from purifiers.runs import LATENT, Run
from purifiers.training.adversarial_data import Panel
from purifiers.training.loop import Stage
from purifiers.training.objectives import at_losses, classifier_losses
from purifiers.training.stages import fit_stage, seeded


class EncoderWithHead(nn.Module):
    """The encoder as a classifier: images in [0,1] -> logits, by a linear layer on the mean of the latent: the purifier's, or
    ``head`` for one without classes."""

    def __init__(self, purifier: CAE, head: nn.Module | None = None) -> None:
        super().__init__()
        self.purifier = purifier
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        latent = self.purifier.latent(images)
        return self.head(latent.mean((2, 3))) if self.head else cast(Verdict, self.purifier.verdict).logits(latent)


class DecoderAlone(nn.Module):
    """A purifier whose encoder is frozen, with what it knows of the classes."""

    def __init__(self, purifier: CAE) -> None:
        super().__init__()
        self.purifier = purifier
        purifier.encoder.requires_grad_(False)
        if purifier.verdict is not None:
            purifier.verdict.head.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.purifier.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.purifier(images)


def train_encoder(run: Run) -> EncoderWithHead:
    """A purifier's encoder as a classifier, adversarially trained: ``latent.encoder`` of the recipe."""
    config, data, encoder = run.recipe.latent, run.images("train"), LATENT[0]
    assert config is not None
    purifier = seeded(run, encoder, run.recipe.purifier.build)
    assert isinstance(purifier, CAE)  # the schema knows no other that is trained
    width, classes = purifier.config["widths"][-1], len(data.classes)
    head = None if purifier.verdict else seeded(run, f"{encoder} head", lambda: nn.Linear(width, classes))
    probe = EncoderWithHead(purifier, head)
    stage = Stage(encoder, probe, data.images, data.labels, classifier_losses(config.encoder, run.precision), config.encoder)
    fit_stage(run, stage, kept=purifier)
    return probe


def train_latent(run: Run, panel: Panel, batch: Tensor) -> nn.Module:
    """The purifier from which teacher AT starts: encoder and decoder of the recipe's group ``latent``, resumable. ``batch``:
    the images, and the adversarial examples of them stacked along the channels.

    A purifier with ``classes`` learns to draw the class that its encoder sees, right or wrong: from the true one the decoder
    would learn to correct the encoder by details that do not withstand attacks."""
    config, data, decoder = run.recipe.latent, run.images("train"), LATENT[1]
    assert config is not None
    probe = train_encoder(run)
    purifier = probe.purifier
    losses = at_losses(config.decoder, panel, Panel([probe], run.precision) if purifier.verdict else None)
    stage = Stage(decoder, DecoderAlone(purifier), batch, data.labels, losses, config.decoder, run.classifier)
    frozen = purifier.encoder if purifier.verdict is None else probe
    fit_stage(run, stage, [*panel.classifiers, frozen], kept=purifier)
    return purifier.requires_grad_(True)
