"""Training the purifiers that ours is compared with: on the recipe's images, in front of its classifier, by the same loop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.attacks.views import Features
from purifiers.baselines import SOAP, nrp, soap
from purifiers.console import progress, say
from purifiers.data import ImageSet, to_float
from purifiers.errors import ConfigError
from purifiers.recipes.baseline_settings import BaselineNRP, BaselineSOAP, TrainingNRP, TrainingSOAP, folder_of
from purifiers.runs import Run
from purifiers.seeds import seed_for
from purifiers.training.adversarial_data import Panel, attack_for_training
from purifiers.training.loop import Stage
from purifiers.training.losses import Losses, output_guidance
from purifiers.training.objectives import StageLosses, attacked
from purifiers.training.stages import fit_stage, seeded


class NRPGame(nn.Module):
    """The purifier and its critic, as one network for the loop: each loss moves one of them only."""

    def __init__(self, purifier: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.critic = critic

    def forward(self, adversarial: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Purified images, and the critic's scores (N,): of clean images, of purified images with gradients for the critic
        alone, and with gradients for the purifier alone."""
        purified = self.purifier(adversarial)
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        for_purifier = torch.func.functional_call(self.critic, frozen, (purified,))
        return purified, self.critic(images), self.critic(purified.detach()), for_purifier


def nrp_losses(config: TrainingNRP, features: nn.Module) -> StageLosses:
    """The purifier's loss (equation 5 of NRP) and the critic's; ``features`` are those of the frozen classifier, (N, F)."""

    def compute(game: nn.Module, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        images, adversarial = attacked(pairs, config, generator)
        purified, clean, for_critic, for_purifier = (part.float() for part in game(adversarial, images))
        with torch.no_grad():
            clean_features = features(images)
        parts = {
            "adversarial": nrp.relativistic_loss(for_purifier, clean.detach()),
            "pixel": F.mse_loss(purified, images),
            "feature": output_guidance(features(purified), clean_features),
            "critic": nrp.relativistic_loss(clean, for_critic),
        }
        purifiers_own = sum(getattr(config, f"{name}_weight") * parts[name] for name in ("adversarial", "pixel", "feature"))
        return {"loss": purifiers_own + parts["critic"], **parts}

    return compute


def train_nrp(run: Run, title: str, config: BaselineNRP, data: ImageSet) -> nn.Module:
    """Train NRP on self-supervised perturbations of ``data``; for errors see ``prepare_baselines``."""
    name = folder_of(title)
    try:
        features = Features(run.classifier, config.feature_layer)
        with torch.no_grad():
            features(to_float(data.images[:2]))
    except ConfigError as error:
        raise ConfigError(f"baselines.{title}.feature_layer: {error}; null takes the logits") from error
    seed = seed_for(run.recipe.seed, "baselines", "attack")
    with progress(f"{title}: attacking training images", len(data)) as advance:
        adversarial = attack_for_training(run, config.attack, features, data, seed, advance)
    say(f"{title:<16} {len(data):,} training images attacked, {len(data) / max(adversarial.seconds, 1e-9):,.0f} images/s")
    purifier = seeded(run, name, config.network.build)
    game = NRPGame(purifier, seeded(run, f"{name} critic", lambda: nrp.Critic(config.critic_width)))
    pairs = torch.cat([data.images, adversarial.images], dim=1)
    made_from = [config.attack.model_dump(), config.feature_layer]
    losses = nrp_losses(config.training, Panel([features], run.precision))
    fit_stage(run, Stage(name, game, pairs, data.labels, losses, config.training), [run.classifier], made_from, purifier)
    return purifier


class JointTraining(nn.Module):
    """SOAP's classifier and its auxiliary task, as one network for the loop."""

    def __init__(self, purifier: SOAP) -> None:
        super().__init__()
        self.purifier = purifier

    def forward(self, images: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) of ``images``, and the task's output for ``others`` or the same: see :meth:`SOAP.auxiliary`."""
        # In one pass, so that batch statistics are of both, as those are that evaluation uses.
        both = images if others is None else torch.cat([images, others])
        parts = self.purifier.classifier.features(both).split(len(images))
        return self.purifier.classifier.logits(parts[0]), self.purifier.answer(parts[-1], images.shape[-2:])


def soap_losses(config: TrainingSOAP, purifier: SOAP) -> StageLosses:
    """Cross-entropy and the auxiliary loss of the task (equation 3 of SOAP)."""
    task = purifier.task

    def noise(images: Tensor, generator: torch.Generator) -> Tensor:
        return config.noise * torch.randn(images.shape, generator=generator, device=images.device)

    def compute(joint: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        if task == "consistency":
            # As in the authors' code: noise without its negative half, the same for both; the second view is that of test time.
            shown = images + noise(images, generator).clamp(min=0)
            logits, others = (part.float() for part in joint(purifier.view(shown, generator), purifier.view(shown)))
            classification = (F.cross_entropy(logits, labels) + F.cross_entropy(others, labels)) / 2
            auxiliary = soap.consistency_error(logits, others).mean()
        elif task == "rotation":
            # Batches are shuffled: which image gets which turn is random. Class and turn are predicted from the turned image.
            turns = torch.arange(len(images), device=images.device) % soap.TURNS
            turned = images.clone()
            for turn in range(1, soap.TURNS):
                turned[turn :: soap.TURNS] = images[turn :: soap.TURNS].rot90(turn, (2, 3))
            logits, predicted = (part.float() for part in joint((turned + noise(images, generator)).clamp(0, 1)))
            classification = F.cross_entropy(logits, labels)
            auxiliary = F.cross_entropy(predicted, turns)
        else:
            logits, restored = (part.float() for part in joint(images, (images + noise(images, generator)).clamp(0, 1)))
            classification = F.cross_entropy(logits, labels)
            auxiliary = soap.reconstruction_error(restored, images).mean()
        return {"loss": classification + config.alpha * auxiliary, "classification": classification, "auxiliary": auxiliary}

    return compute


def train_soap(run: Run, title: str, config: BaselineSOAP, data: ImageSet) -> nn.Module:
    """Train SOAP's classifier and its auxiliary task on ``data``; for errors see ``prepare_baselines``."""
    name = folder_of(title)
    purifier = seeded(run, name, lambda: config.build(len(data.classes)))
    assert isinstance(purifier, SOAP)
    height, width = data.images.shape[-2:]
    if purifier.task == "rotation" and height != width:
        found = f"turned images need to be square; these are {height} by {width}"
        raise ConfigError(f"baselines.{title}: {found}: set data.size, or leave it out")
    losses = soap_losses(config.training, purifier)
    # Not in the structure: buffers that are not saved, and the task.
    made_from = [purifier.task, purifier.mirrored, purifier.classifier.config]
    stage = Stage(name, JointTraining(purifier), data.images, data.labels, losses, config.training)
    fit_stage(run, stage, made_from=made_from, kept=purifier)
    return purifier
