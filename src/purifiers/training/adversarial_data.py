"""The classifiers that a purifier is trained against, and the adversarial examples on them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from purifiers.attacks import Attack
from purifiers.attacks.generate import Adversarial, generate
from purifiers.console import progress, say
from purifiers.data import ImageSet
from purifiers.device import Precision, autocast
from purifiers.errors import TrainingError
from purifiers.recipes.schema import Recipe
from purifiers.runs import Run
from purifiers.seeds import generator_for, seed_for


class InPrecision(nn.Module):
    """``network`` in the training's precision, with float32 images and outputs, as in an attack."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.network = network
        self.precision = precision

    def extra_repr(self) -> str:
        return self.precision  # a part of the fingerprint that cached adversarial examples are found by

    def forward(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.precision):
            outputs: Tensor = self.network(images)
        return outputs.float()


class Panel(nn.Module):
    """Frozen classifiers, each on its share of a batch, in the training's precision.

    Args:
        classifiers: in evaluation mode; at least one.
        precision: of their passes.

    Attributes:
        failed: bool (), whether a logit of finite images was ever not finite; on the classifiers' device.
    """

    failed: Tensor

    def __init__(self, classifiers: Iterable[nn.Module], precision: Precision = "32-true") -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)
        self.precision = precision
        device = next((tensor.device for tensor in chain(self.parameters(), self.buffers())), None)
        self.register_buffer("failed", torch.zeros((), dtype=torch.bool, device=device), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), float32, of ``images`` (N, C, H, W): the first share from the first classifier, and so on.

        Batches are shuffled, so that every classifier sees every image in time; an image, its adversarial example and its
        purified image are seen by the same one.
        """
        with autocast(images.device, self.precision):
            shares = images.chunk(len(self.classifiers))
            # A classifier may change its images in place.
            parts = [classifier(share.clone()) for classifier, share in zip(self.classifiers, shares, strict=False)]
        logits = torch.cat(parts).float()
        self.failed |= images.isfinite().all() & ~logits.isfinite().all()
        return logits

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A loss that is not finite because of a classifier is reported as that classifier's fault.

        Raises:
            TrainingError: of the training within; it names the classifier if a classifier is the cause.
        """
        try:
            yield
        except TrainingError as error:
            if self.failed:
                raise TrainingError(
                    "a classifier returned NaN or infinite logits for attacked or purified images, which spoils the loss: "
                    "look for a division, logarithm or overflow in its forward"
                ) from error
            raise


def attack_for_training(
    run: Run, attack: Attack, model: nn.Module, data: ImageSet, seed: int, advance: Callable[[int], None]
) -> Adversarial:
    """Adversarial examples of all of ``data`` as uint8, in the training's precision, cached, within the run's time limit.

    Args:
        run: gives precision, batch size, cache and time limit.
        attack, model, data, seed, advance: see :func:`purifiers.attacks.generate.generate`.
    """
    if run.recipe.precision != "32-true":
        model = InPrecision(model, run.recipe.precision)

    return generate(
        attack,
        model,
        data,
        seed=seed,
        batch_size=run.recipe.evaluation.batch_size,
        cache=run.cache,
        quantized=True,
        advance=advance,
        saved=lambda: run.deadline.check("a part of the adversarial examples"),
    )


def attack_training_images(run: Run, panel: Panel, data: ImageSet) -> Tensor:
    """Adversarial examples for training: uint8 (N, 3 * rounds, H, W), the rounds stacked along the channels.

    Every attack of the recipe is run on every classifier of the panel, each on its share of the images of each round (on
    ``weight`` shares); without attacks there are no channels.
    """
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
            for job, ((attack, model), chosen) in enumerate(zip(jobs, _shares(recipe, turn, len(jobs), data), strict=True)):
                if not len(chosen):
                    continue
                seed = seed_for(recipe.seed, "training attack", turn, job)
                found = attack_for_training(run, attack, model, data.subset(chosen), seed, advance)
                adversarial[chosen] = found.images
                seconds += found.seconds
            rounds.append(adversarial)
    say(f"{'attack':<16} {count:,} training images, {count / max(seconds, 1e-9):,.0f} images/s")
    return torch.cat(rounds, dim=1)


def _shares(recipe: Recipe, turn: int, jobs: int, data: ImageSet) -> Sequence[Tensor]:
    """The images that each job attacks in this round: disjoint index tensors, some empty where images are few."""
    if jobs == 1:
        return [torch.arange(len(data), device=data.images.device)]
    generator = generator_for(recipe.seed, "who attacks what", turn)
    job_of = torch.randperm(len(data), generator=generator).to(data.images.device) % jobs
    return [(job_of == job).nonzero().flatten() for job in range(jobs)]
