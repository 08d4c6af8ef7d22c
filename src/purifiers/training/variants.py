"""What each ingredient of a recipe brings: the same training again and again, with one of them left out."""

from collections.abc import Mapping

from purifiers.console import say
from purifiers.recipes import Recipe, changed, with_sources
from purifiers.training.pipeline import train
from purifiers.training.run import Run


def variant_recipes(recipe: Recipe, sources: Mapping[str, str]) -> dict[str, Recipe]:
    """The recipe of each of ``recipe.variants``, by title; the first one's settings are in all of them.

    Args:
        recipe: with variants.
        sources: where the trained classifiers lie, by stage, so that no variant trains them again.

    Raises:
        ConfigError: a variant sets a key that does not exist, or to a value that is not valid.
    """
    trained = changed(with_sources(recipe, sources), {"variants": {}, "baselines": {}, "weights": {}})
    base = next(iter(recipe.variants.values()), {})
    return {title: changed(trained, base | own) for title, own in recipe.variants.items()}


def train_variants(run: Run, device: str = "auto") -> None:
    """Train the variants of ``run``'s recipe below its folder, each resumable like any run, into ``run.variants``.

    Raises:
        See :func:`purifiers.training.pipeline.train`.
    """
    sources = {name: config.source or str(run.checkpoint(name).resolve()) for name, config in run.recipe.classifiers().items()}
    for title, recipe in variant_recipes(run.recipe, sources).items():
        say(f"\nvariant: {title}")
        trained = train(recipe, run.variant(title), device=device, cache=run.cache, deadline=run.deadline)
        run.variants[title] = trained.purifiers["student"]
