"""The classifiers that a purifier is trained against, and the adversarial examples on them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from purifiers.attacks import Attack
from purifiers.attacks.generate import Adversarial, generate
from purifiers.cache import Cache
from purifiers.console import progress, say
from purifiers.data import ImageSet
from purifiers.device import Precision, autocast
from purifiers.errors import TrainingError, Unfinished
from purifiers.runs import Run
from purifiers.seeds import generator_for, seed_for
from purifiers.shards import Shard
from purifiers.training.distributed import averaged, first_only, rank, world_size


class Panel(nn.Module):
    """One or more networks, usually frozen classifiers, each on its share of a batch, in the training's precision."""

    failed: Tensor  # bool (), on the classifiers' device: was a logit of finite images ever not finite?

    def __init__(self, classifiers: Iterable[nn.Module], precision: Precision = "32-true") -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)
        self.precision = precision
        device = next((tensor.device for tensor in chain(self.parameters(), self.buffers())), None)
        self.register_buffer("failed", torch.zeros((), dtype=torch.bool, device=device), persistent=False)

    def extra_repr(self) -> str:
        return self.precision  # a part of the fingerprint that cached adversarial examples are found by

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), float32, of ``images`` (N, C, H, W): the first share from the first classifier, and so on."""
        with autocast(images.device, self.precision):
            shares = images.chunk(len(self.classifiers))
            # A classifier may change its images in place.
            parts = [classifier(share.clone()) for classifier, share in zip(self.classifiers, shares, strict=False)]
        logits = torch.cat(parts).float()
        self.failed |= images.isfinite().all() & ~logits.isfinite().all()
        return logits

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Report a TrainingError of the training within as a classifier's fault, where one is the cause."""
        try:
            yield
        except TrainingError as error:
            if not self.failed:
                raise
            cause = "a classifier returned NaN or infinite logits for attacked or purified images, so that a loss is not finite"
            raise TrainingError(f"{cause}: look for a division, logarithm or overflow in its forward") from error


def attack_for_training(
    run: Run, attack: Attack, model: nn.Module, data: ImageSet, seed: int, advance: Callable[[int], None]
) -> Adversarial:
    """:func:`purifiers.attacks.generate.generate` with the run's precision, batch size, cache and time limit, as uint8."""
    if run.recipe.precision != "32-true":
        model = Panel([model], run.recipe.precision)
    size, cache = run.recipe.evaluation.batch_size, Cache(run.cache, run.shard)
    saved = partial(run.deadline.check, "a part of the adversarial examples")
    return generate(attack, model, data, seed=seed, batch_size=size, cache=cache, quantized=True, advance=advance, saved=saved)


def attack_training_images(run: Run, panel: Panel, data: ImageSet) -> Tensor:
    """Adversarial examples for training: uint8 (N, 3 * rounds, H, W), the rounds stacked along the channels. Every attack
    of the recipe is run on every classifier of the panel, each on its share of the images of each round (on ``weight`` shares);
    without attacks there are no channels. Of several processes each makes a part, and the first collects them in the cache."""
    if world_size() > 1:
        run.shard = Shard(rank(), world_size())
        with suppress(Unfinished):
            _attack_training_images(run, panel, data)
        run.shard = Shard()
        averaged(torch.zeros(1, device=data.images.device))  # once all have come here
    return first_only(lambda: _attack_training_images(run, panel, data).cpu()).to(data.images.device)


def _attack_training_images(run: Run, panel: Panel, data: ImageSet) -> Tensor:
    recipe = run.recipe
    if not recipe.training_attacks:
        return data.images[:, :0]
    shares = [attack for attack in recipe.training_attacks.values() for _ in range(attack.weight)]
    jobs = [(attack, model) for attack in shares for model in panel.classifiers]
    count, seconds = len(data) * recipe.attack_rounds, 0.0
    rounds = []
    with progress("attacking training images", count) as advance:
        for turn in range(recipe.attack_rounds):
            adversarial = torch.empty_like(data.images)
            generator = generator_for(recipe.seed, "who attacks what", turn)
            job_of = torch.randperm(len(data), generator=generator).to(data.images.device) % len(jobs)
            for job, (attack, model) in enumerate(jobs):
                if len(chosen := (job_of == job).nonzero().flatten()):
                    seed = seed_for(recipe.seed, "training attack", turn, job)
                    found = attack_for_training(run, attack, model, data.subset(chosen), seed, advance)
                    adversarial[chosen] = found.images
                    seconds += found.seconds
            rounds.append(adversarial)
    run.shard.check()
    say(f"{'attack':<16} {count:,} training images, {count / max(seconds, 1e-9):,.0f} images/s")
    return torch.cat(rounds, dim=1)
