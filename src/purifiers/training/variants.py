"""What each ingredient of a recipe brings: the same training again and again, with one of them left out."""

from purifiers.console import say
from purifiers.recipes import variant_recipes
from purifiers.training.pipeline import train
from purifiers.training.run import Run


def train_variants(run: Run, device: str = "auto") -> None:
    """Train the variants of ``run``'s recipe below its folder, each resumable like any run, into ``run.variants``.

    Args:
        run: as :func:`purifiers.training.pipeline.train` gives it: its classifiers are those of every variant that does not
            ask for others.
        device: see :func:`purifiers.training.run.make_fabric`.

    Raises:
        See :func:`purifiers.training.pipeline.train`.
    """
    known = run.recipe.classifiers()
    for title, recipe in variant_recipes(run.recipe).items():
        say(f"\nvariant: {title}")
        given = {
            name: run.classifiers[twin]
            for name, config in recipe.classifiers().items()
            for twin in (*known, name)  # of several alike the one of this place, which stands last
            if known.get(twin) == config
        }
        folder = run.variant(title)
        trained = train(recipe, folder, device=device, cache=run.cache, deadline=run.deadline, classifiers=given)
        run.variants[title] = trained.purifiers["student"]
