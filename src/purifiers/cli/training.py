"""``purifiers train`` and ``reproduce``, and ``demo``: the latter on a small data set."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from purifiers.cli import options
from purifiers.cli.measuring import refuse_other_run, report
from purifiers.errors import ConfigError
from purifiers.shards import Shard
from purifiers.weights import NAMES

if TYPE_CHECKING:
    from purifiers.evaluation.records import Results
    from purifiers.runs import Run


def train(
    *,
    changes: options.Changes,
    recipe: Annotated[str | None, options.recipe("digits; folder with --images")] = None,
    shipped_classifiers: options.ShippedClassifiers = False,
    output: Annotated[Path | None, options.output("runs/RECIPE")] = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    minutes: options.Minutes = None,
    restart: options.Restart = False,
    shard: Annotated[str | None, options.shard(False)] = None,
    dry_run: options.DryRun = False,
) -> None:
    """Train a purifier for a classifier.

    Train a classifier (or use yours), the two teachers and the student. Purifier.from_pretrained and 'purifiers evaluate'
    take the output folder. If interrupted, the same command resumes. Under torchrun the processes share the work. With --shard,
    one process trains the classifiers, all make adversarial examples, and the last one trains the purifier.
    """
    from purifiers.console import Deadline, Stopwatch, duration, say
    from purifiers.forecast import foreseen
    from purifiers.recipes.load import load_recipe, with_shipped_classifiers
    from purifiers.training.distributed import together
    from purifiers.training.pipeline import train_recipe

    watch, share = Stopwatch(), Shard.parse(shard or "0/1")  # RANK and WORLD_SIZE are torchrun's here
    if share.count > 1 and (restart or os.environ.get("WORLD_SIZE", "1") != "1"):
        raise ConfigError("--shard: not with --restart, which would discard the work of others, and not under torchrun")
    chosen = load_recipe(recipe or ("folder" if changes.images else "digits"), changes.overrides(seed=seed))
    if shipped_classifiers:
        chosen = with_shipped_classifiers(chosen)
    folder = output or Path("runs") / chosen.name
    deadline = Deadline(minutes)

    def work() -> "Run":
        own = replace(share)  # which counts its pieces
        return train_recipe(chosen, folder, device=device, restart=restart, deadline=deadline, shard=own)

    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several and dry_run:
        raise ConfigError("--dry-run: not under torchrun, whose processes wait for each other")
    brief = several or chosen.data.name == "digits"
    with together():
        if not foreseen(work, dry_run, brief):
            return
        say(f"trained in {duration(watch.seconds)}")
        say(f"\nThe purifier is in {folder}. Measure it:  purifiers evaluate {folder}")
        # A plain name would mean the purifier that ships.
        say(f'In Python:  Purifier.from_pretrained("{"./" if str(folder) in NAMES else ""}{folder}")')


def reproduce(
    recipe: Annotated[str, options.recipe()] = "paper",
    *,
    changes: options.Changes,
    from_weights: Annotated[
        bool, typer.Option("--from-weights", help="Measure the shipped weights of the recipe (Table 1) instead of training.")
    ] = False,
    tables: Annotated[
        Sequence[int] | None,
        typer.Option(
            metavar="1,2,3",
            parser=options.listed(int, "numbers of tables (1 to 3) separated by commas", {1, 2, 3}.issuperset),
            help="Tables to train for; Table 1 is always written. Default: all.",
        ),
    ] = None,
    seeds: Annotated[
        Sequence[int] | None,
        typer.Option(
            metavar="0,1,2",
            parser=options.listed(
                int, "several different seeds separated by commas, such as 0,1,2", lambda seeds: 1 < len(seeds) == len({*seeds})
            ),
            help="Train and measure once with each seed, each in a folder of its own, and average Table 2 over them.",
        ),
    ] = None,
    baselines: Annotated[options.Which | None, options.baselines("all; ready with --from-weights or --seeds")] = None,
    shipped_classifiers: options.ShippedClassifiers = False,
    output: Annotated[Path | None, options.output("runs/RECIPE; runs/RECIPE-weights with --from-weights")] = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    minutes: options.Minutes = None,
    restart: options.Restart = False,
    dry_run: options.DryRun = False,
) -> None:
    """Reproduce the paper's tables, from training or shipped weights.

    Train everything and measure it; on CIFAR-10 the paper's numbers stand beside ours. Table 1: the purifier and others
    against every attack. Table 2: the effect of each teacher (further students). Table 3: the effect of each ingredient,
    if the recipe names variants. What is finished in the output folder is reused.
    """
    from purifiers.console import Deadline, Stopwatch, duration, say
    from purifiers.forecast import foreseen
    from purifiers.recipes.load import changed, load_recipe, with_shipped_classifiers
    from purifiers.reports.pages import write_seeds
    from purifiers.runs import open_weights, prepare_baselines
    from purifiers.training.pipeline import train_recipe, train_variants

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("this runs in one process; first train in the same --output: torchrun ... -m purifiers train")
    wanted = tables or (1, 2, 3)
    if seeds and (from_weights or 2 not in wanted or seed is not None):
        raise ConfigError("--seeds is for Table 2, which is trained: not with --from-weights, --seed, or --tables without 2")
    if from_weights and (seed is not None or restart or tables not in (None, [1])):
        raise ConfigError("--from-weights takes the weights as they are: not with --seed, --restart, or --tables other than 1")
    if from_weights and minutes is not None and baselines != "all":
        raise ConfigError("--minutes limits training, and --from-weights trains nothing without --baselines all")
    chosen = load_recipe(recipe, changes.overrides(trained=from_weights, seed=seed))
    if shipped_classifiers:
        chosen = with_shipped_classifiers(chosen)
    folder = output or Path("runs") / (chosen.name + ("-weights" if from_weights else ""))
    if from_weights:
        refuse_other_run(folder)
    if baselines is None:
        baselines = "ready" if from_weights or seeds or 1 not in wanted else "all"
    deadline = Deadline(minutes)  # one for all seeds together; all are trained before the first is measured

    def work() -> "list[Results]":
        runs = []
        for one in seeds or (seed,):
            watch, place, own = Stopwatch(), folder, chosen
            if seeds:
                say(f"\nseed {one}")
                own, place = changed(chosen, {"seed": one}), folder / f"seed-{one}"
            if from_weights:
                run = open_weights(own, load_recipe(recipe), place, device)
                run.deadline = deadline
            else:
                run = train_recipe(own, place, device=device, ablation=2 in wanted, restart=restart, deadline=deadline)
            if baselines != "none":
                prepare_baselines(run, train=baselines == "all")
            if 3 in wanted and not from_weights:
                train_variants(run, device)
            say(f"trained in {duration(watch.seconds)}")
            runs.append(run)
        return [report(run, run.folder) for run in runs]

    if (results := foreseen(work, dry_run, chosen.data.name == "digits")) and seeds:
        write_seeds(results, folder).show(caption=True)


def demo(
    recipe: Annotated[str, options.recipe()] = "digits",
    output: Annotated[Path, options.output()] = Path("runs/demo"),
    settings: options.Settings = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    minutes: options.Minutes = None,
    restart: options.Restart = False,
    baselines: Annotated[options.Which, options.baselines()] = "all",
) -> None:
    """Run the paper's whole pipeline on a small data set, in minutes.

    Train a classifier, the two teachers and the students on scikit-learn's digits, attack them in six ways, and write both
    tables of the paper, its figure and an HTML report. Needs neither a download nor a GPU.
    """
    changes = options.Changes(settings=settings)
    reproduce(
        recipe, changes=changes, output=output, device=device, seed=seed, minutes=minutes, restart=restart, baselines=baselines
    )
