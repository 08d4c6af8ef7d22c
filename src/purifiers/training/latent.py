"""Pretrain a robust encoder, then a decoder on the classifiers' loss, before the teachers.

Where the attacker differentiates through both, a purifier in front of a fragile classifier does not learn from random weights.
An encoder that is trained as a small robust classifier (Madry et al. 2018) gives it a latent that attacks hardly move.
"""

from typing import Self

from torch import Tensor, nn

from purifiers.networks import CAE
from purifiers.runs import LATENT, Run
from purifiers.training.adversarial_data import Panel
from purifiers.training.loop import Stage, fit_stage, seeded
from purifiers.training.objectives import at_losses, encoder_losses


class EncoderWithHead(nn.Module):
    """The encoder as a classifier: images in [0,1] -> logits, by a linear layer on the mean of the latent."""

    def __init__(self, purifier: CAE, head: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.purifier.latent(images).mean((2, 3)))


class DecoderAlone(nn.Module):
    """A purifier whose encoder is frozen."""

    def __init__(self, purifier: CAE) -> None:
        super().__init__()
        self.purifier = purifier
        purifier.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.purifier.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.purifier(images)


def train_latent(run: Run, panel: Panel, batch: Tensor, labels: Tensor, made_from: object) -> nn.Module:
    """The purifier from which teacher AT starts: encoder and decoder of the recipe's group ``latent``, resumable.

    ``batch`` and ``made_from``: see :func:`purifiers.training.loop.fit_stage`.
    """
    config = run.recipe.latent
    assert config is not None
    encoder, decoder = LATENT
    purifier = seeded(run, encoder, run.recipe.purifier.build)
    assert isinstance(purifier, CAE)  # the schema knows no other that is trained
    width, classes = purifier.config["widths"][-1], len(run.images("train").classes)
    probe = EncoderWithHead(purifier, seeded(run, f"{encoder} head", lambda: nn.Linear(width, classes)))
    stage = Stage(encoder, probe, batch[:, :3], labels, encoder_losses(config.attack, panel), config.encoder)
    fit_stage(run, stage, made_from=[config.attack.model_dump()], kept=purifier)
    stage = Stage(decoder, DecoderAlone(purifier), batch, labels, at_losses(config.decoder, panel), config.decoder)
    fit_stage(run, stage, [*panel.classifiers, purifier.encoder], made_from, purifier)
    return purifier.requires_grad_(True)
