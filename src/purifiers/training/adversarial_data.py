"""The classifiers that a purifier is trained against, and the adversarial examples on them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from purifiers.attacks import Attack
from purifiers.attacks.generate import BLOCK, Adversarial, generate
from purifiers.cache import Cache
from purifiers.console import progress, say
from purifiers.data import ImageSet, slices, to_float, to_uint8
from purifiers.data.large import empty
from purifiers.device import Precision, autocast, in_parts
from purifiers.errors import PurifiersError, TrainingError
from purifiers.forecast import current
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
        """Logits (N, classes), float32, of ``images`` (N, C, H, W): the first share from the first classifier, and so on.
        Shares differ by an image at most."""
        with autocast(images.device, self.precision):
            shares = images.tensor_split(len(self.classifiers))
            # A classifier may change its images in place.
            parts = [one(share.clone()) for one, share in zip(self.classifiers, shares, strict=True) if len(share)]
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
    run: Run,
    attack: Attack,
    model: nn.Module,
    data: ImageSet,
    seed: int,
    advance: Callable[[int], None],
    some: tuple[Tensor, Tensor] | None = None,
) -> Adversarial:
    """:func:`purifiers.attacks.generate.generate` with the run's precision, batch size, cache and time limit, as uint8."""
    if run.precision != "32-true":
        model = Panel([model], run.precision)
    return generate(
        attack,
        model,
        data,
        seed=seed,
        batch_size=run.recipe.evaluation.batch_size,
        cache=Cache(run.cache, run.shard),
        quantized=True,
        some=some,
        advance=advance,
        saved=partial(run.deadline.check, "a part of the adversarial examples"),
    )


def attack_training_images(run: Run, panel: Panel, data: ImageSet) -> Tensor:
    """The images of ``data`` with adversarial examples for training: uint8 (N, 3 + 3 * rounds, H, W), the rounds stacked along
    the channels. Every attack of the recipe is run on every classifier of the panel, each on its share of the images of each
    round (on ``weight`` shares); without attacks there are no more channels. Of several processes each attacks a part, and the
    first collects them from the cache."""
    recipe, device = run.recipe, data.images.device
    if not recipe.training_attacks:
        return data.images
    shape = len(data), 3 + 3 * recipe.attack_rounds, *data.images.shape[2:]
    pairs = empty(shape, torch.uint8, run.cache, device=device)
    parts = slices(len(data), BLOCK)  # all may not fit into memory
    for part in parts:
        pairs[part, :3] = data.images[part]
    if world_size() > 1:
        run.shard = Shard(rank(), world_size())
        with suppress(PurifiersError):  # the first process finds the same error below, and all raise it
            _attack(run, panel, data, pairs[:, 3:])
        run.shard = Shard()
        averaged(torch.zeros(1, device=device))  # once all have come here
    first_only(lambda: _attack(run, panel, data, pairs[:, 3:]))
    for part in parts if world_size() > 1 else ():
        pairs[part] = first_only(partial(pairs[part].cpu)).to(device)
    return pairs


def with_outputs(run: Run, teacher: nn.Module, pairs: Tensor) -> Tensor:
    """``pairs`` of images and rounds of adversarial examples, with the ``teacher``'s output after each of these."""
    images, *rounds = pairs.split(3, dim=1)
    shape = len(pairs), 3 + 6 * len(rounds), *pairs.shape[2:]
    result, cache = empty(shape, torch.uint8, run.cache, device=pairs.device), Cache(run.cache)
    with torch.no_grad(), progress("teacher AT's outputs", len(pairs) * len(rounds)) as advance:
        for part in slices(len(pairs), run.recipe.evaluation.batch_size):
            result[part, :3] = images[part]
            for i, adversarial in enumerate(rounds):
                key = cache.key(teacher, adversarial[part])
                purified = cache.load("purified", key, lambda state: state["images"].to(pairs.device))
                if purified is None and (plan := current()):
                    purified, batch = adversarial[part], run.recipe.evaluation.batch_size
                    plan.note(plan.passes(teacher, to_float(purified[:4]), batch).seconds(len(purified), 1), len(pairs))
                if purified is None:
                    purified = to_uint8(in_parts(teacher, to_float(adversarial[part])))
                    cache.save("purified", key, {"images": purified})
                result[part, 3 + 6 * i : 9 + 6 * i] = torch.cat([adversarial[part], purified], dim=1)
                advance(len(purified))
    return result


def _attack(run: Run, panel: Panel, data: ImageSet, rounds: Tensor) -> None:
    recipe = run.recipe
    shares = [attack for attack in recipe.training_attacks.values() for _ in range(attack.weight)]
    jobs = [(attack, model) for attack in shares for model in panel.classifiers]
    count, seconds = len(data) * recipe.attack_rounds, 0.0
    with progress("attacking training images", count) as advance:
        for turn, into in enumerate(rounds.split(3, dim=1)):
            generator = generator_for(recipe.seed, "who attacks what", turn)
            job_of = torch.randperm(len(data), generator=generator).to(rounds.device) % len(jobs)
            for job, (attack, model) in enumerate(jobs):
                seed = seed_for(recipe.seed, "training attack", turn, job)
                chosen = (job_of == job).nonzero().flatten()
                seconds += attack_for_training(run, attack, model, data, seed, advance, some=(chosen, into)).seconds
    run.shard.check()
    say(f"{'attack':<16} {count:,} training images, {count / max(seconds, 1e-9):,.0f} images/s")
