"""Training the purifiers that ours is compared with: on the recipe's images, in front of its classifier, by the same loop."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purifiers.attacks.views import Features
from purifiers.baselines import NRP, SOAP, nrp, soap
from purifiers.console import progress, say
from purifiers.data import ImageSet, to_float
from purifiers.errors import ConfigError
from purifiers.purifier import Purifier
from purifiers.recipes.baseline_settings import (
    BaselineNRP,
    BaselineSOAP,
    TrainedBaseline,
    TrainingNRP,
    TrainingSOAP,
    Untrained,
    folder_of,
)
from purifiers.registry import CONFIG_FILE, build_network, describe, load_network, resolve
from purifiers.runs import STATE_FILE, Run
from purifiers.seeds import seed_for
from purifiers.storage import load_state, write_text
from purifiers.training.adversarial_data import InPrecision, attack_for_training
from purifiers.training.losses import Losses
from purifiers.training.objectives import StageLosses, attacked
from purifiers.training.stage import fit_stage, seeded

SETTINGS_FILE = "baseline.json"
"""In the folder of a trained baseline: with what it was trained."""


def prepare_baselines(run: Run, train: bool = True) -> None:
    """Build the recipe's baselines into ``run.baselines``.

    Args:
        run: with a classifier and a student.
        train: train what is not trained yet; otherwise that is left out, and what is wrapped around it.

    Raises:
        OutOfTime, TrainingError, CheckpointError: see :func:`purifiers.training.loop.fit`.
        ConfigError: the classifier has no such layer, or images do not suit the baseline.
    """
    for title, config in run.recipe.baselines.items():
        network: nn.Module | None
        if isinstance(config, Untrained):
            network = _untrained(run, config)
        elif not isinstance(config, TrainedBaseline):
            network = build_network(config.network.network, config.network.arguments)
        elif train:
            data = run.images("train").limited(config.limit, seed_for(run.recipe.seed, "baselines", "limit"))
            network = resolve(config.trainer, "trainer")(run, title, config, data)
            assert network is not None
            write_text(run.checkpoint(folder_of(title)) / SETTINGS_FILE, config.model_dump_json(indent=1))
        else:
            network = _ready(run, title, config)
        if network is None:
            say(f"{title:<16} is left out: not trained as the recipe says (--baselines all trains it)")
        else:
            run.baselines[title] = Purifier(network).placed(run.device)


def _ready(run: Run, title: str, config: TrainedBaseline) -> nn.Module | None:
    """The finished network of a stage, if it is the one that the recipe asks for."""
    folder = run.checkpoint(folder_of(title))
    if not (folder / CONFIG_FILE).is_file() or not (folder / STATE_FILE).is_file():
        return None
    network, history = load_network(folder), load_state(folder / STATE_FILE)["history"]
    wanted = build_network(config.network.network, _arguments(config, len(run.images("test").classes)))
    if describe(network) != describe(wanted) or _settings(config, folder) != config:
        return None
    run.histories[folder.name] = history
    return network


def _settings(config: TrainedBaseline, folder: Path) -> TrainedBaseline | None:
    """What a finished stage was trained with; None where that cannot be read. On how many images it is measured is free."""
    try:
        told = type(config).model_validate_json((folder / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        return None
    return told.model_copy(update={"test_limit": config.test_limit})


def _arguments(config: TrainedBaseline, classes: int) -> dict[str, Any]:
    """Of the network, with as many classes in its classifier, if it has one, as the data."""
    arguments = dict(config.network.arguments)
    if isinstance(config, BaselineSOAP):
        arguments["classifier"] = {**arguments["classifier"], "num_classes": classes}
    return arguments


def _untrained(run: Run, config: Untrained) -> nn.Module | None:
    if config.around is None:
        return build_network(config.network.network, config.network.arguments)
    inner = run.purifiers["student"] if config.around == "student" else run.baselines.get(config.around)
    if inner is None:
        return None
    described = describe(inner.network)
    if config.network.network == "soap":
        if described.pop("network") != "soap":
            raise ConfigError(f"baselines: a network 'soap' goes around a trained SOAP only; '{config.around}' is none")
        other = build_network("soap", {**described, **config.network.arguments})
        try:
            other.load_state_dict(inner.network.state_dict())
        except RuntimeError as error:
            raise ConfigError(f"baselines: the weights of '{config.around}' do not fit the arguments given: {error}") from error
        return other
    outer = build_network(config.network.network, {**config.network.arguments, "base": described})
    outer.get_submodule("base").load_state_dict(inner.network.state_dict())
    return outer


# NRP


class NRPGame(nn.Module):
    """The purifier and its critic, as one network for the loop: each of their losses moves only the one that it is for."""

    def __init__(self, purifier: NRP, critic: nrp.Critic) -> None:
        super().__init__()
        self.purifier = purifier
        self.critic = critic

    def forward(self, adversarial: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Purified images, and the critic's scores (N,): of clean images, of purified images for the critic to learn from, and
        of purified images for the purifier to learn from."""
        purified = self.purifier(adversarial)
        still = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        for_purifier = torch.func.functional_call(self.critic, still, (purified,))
        return purified, self.critic(images), self.critic(purified.detach()), for_purifier


def nrp_losses(config: TrainingNRP, features: nn.Module) -> StageLosses:
    """The purifier's loss (equation 5 of NRP) and the critic's.

    Args:
        config: the weights, and how strong the perturbations are.
        features: images -> features (N, F) of the frozen classifier, float32.
    """

    def compute(game: nn.Module, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Losses:
        images, adversarial = attacked(pairs, config, generator)
        purified, clean, for_critic, for_purifier = (part.float() for part in game(adversarial, images))
        with torch.no_grad():
            clean_features = features(images)
        parts = {
            "adversarial": nrp.relativistic_loss(for_purifier, clean.detach()),
            "pixel": F.mse_loss(purified, images),
            "feature": nrp.feature_loss(features(purified), clean_features),
            "critic": nrp.relativistic_loss(clean, for_critic),
        }
        purifiers_own = sum(getattr(config, f"{name}_weight") * parts[name] for name in ("adversarial", "pixel", "feature"))
        return {"loss": purifiers_own + parts["critic"], **parts}

    return compute


def train_nrp(run: Run, title: str, config: BaselineNRP, data: ImageSet) -> nn.Module:
    """Train NRP on self-supervised perturbations of ``data``, resumable; see :func:`prepare_baselines` for errors."""
    stage = folder_of(title)
    try:
        seen = Features(run.classifier, config.feature_layer)
        with torch.no_grad():
            seen(to_float(data.images[:2]))
    except ConfigError as error:
        raise ConfigError(f"baselines.{title}.feature_layer: {error}; null takes the logits") from error
    seed = seed_for(run.recipe.seed, "baselines", "attack")
    with progress(f"{title}: attacking training images", len(data)) as advance:
        adversarial = attack_for_training(run, config.attack, seen, data, seed, advance)
    say(f"{title:<16} {len(data):,} training images attacked, {len(data) / max(adversarial.seconds, 1e-9):,.0f} images/s")
    purifier = seeded(run, stage, lambda: build_network(config.network.network, config.network.arguments))
    assert isinstance(purifier, NRP)
    critic = seeded(run, f"{stage} critic", lambda: nrp.Critic(config.critic_width))
    assert isinstance(critic, nrp.Critic)
    game = NRPGame(purifier, critic)
    pairs = torch.cat([data.images, adversarial.images], dim=1)
    made_from = [config.attack.model_dump(), config.feature_layer]
    losses = nrp_losses(config.training, InPrecision(seen, run.recipe.precision))
    fit_stage(run, stage, stage, game, pairs, data.labels, losses, config.training, [run.classifier], made_from, purifier)
    return purifier


# SOAP


class JointTraining(nn.Module):
    """SOAP's classifier and its auxiliary task, as one network for the loop."""

    def __init__(self, purifier: SOAP) -> None:
        super().__init__()
        self.purifier = purifier

    def forward(self, images: Tensor, others: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) of ``images``, and what the task says of ``others`` or the same: see :meth:`SOAP.auxiliary`."""
        # In one pass, so that batch statistics are of both, as those that are kept for evaluation are.
        both = images if others is None else torch.cat([images, others])
        parts = self.purifier.classifier.features(both).split(len(images))
        return self.purifier.classifier.logits(parts[0]), self.purifier.answer(parts[-1], images.shape[-2:])


def soap_losses(config: TrainingSOAP, purifier: SOAP) -> StageLosses:
    """Cross-entropy and the auxiliary loss of the task (equation 3 of SOAP).

    Args:
        config: the weight, and the noise.
        purifier: tells the task, and makes the views of label consistency.
    """
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
            # Batches are shuffled: it is chance which image gets which turn. Class and turn are both told from the turned one.
            turns = torch.arange(len(images), device=images.device) % soap.TURNS
            turned = images.clone()
            for turn in range(1, soap.TURNS):
                turned[turn :: soap.TURNS] = images[turn :: soap.TURNS].rot90(turn, (2, 3))
            logits, said = (part.float() for part in joint((turned + noise(images, generator)).clamp(0, 1)))
            classification = F.cross_entropy(logits, labels)
            auxiliary = F.cross_entropy(said, turns)
        else:
            logits, restored = (part.float() for part in joint(images, (images + noise(images, generator)).clamp(0, 1)))
            classification = F.cross_entropy(logits, labels)
            auxiliary = soap.reconstruction_error(restored, images).mean()
        return {"loss": classification + config.alpha * auxiliary, "classification": classification, "auxiliary": auxiliary}

    return compute


def train_soap(run: Run, title: str, config: BaselineSOAP, data: ImageSet) -> nn.Module:
    """Train SOAP\'s classifier and its auxiliary task on ``data``, resumable; see :func:`prepare_baselines` for errors."""
    stage = folder_of(title)
    purifier = seeded(run, stage, lambda: build_network("soap", _arguments(config, len(data.classes))))
    assert isinstance(purifier, SOAP)
    height, width = data.images.shape[-2:]
    if purifier.task == "rotation" and height != width:
        raise ConfigError(
            f"baselines.{title}: turned images need to be square; these are {height} by {width}: set data.size, or leave it out"
        )
    losses = soap_losses(config.training, purifier)
    # What the structure does not tell: buffers that are not saved, and what the task is.
    made_from: list[object] = [purifier.task, purifier.mirrored, purifier.classifier.config]
    made_from.append("views and noise as in the authors' code")  # they were others once
    joint = JointTraining(purifier)
    fit_stage(run, stage, stage, joint, data.images, data.labels, losses, config.training, made_from=made_from, kept=purifier)
    return purifier
