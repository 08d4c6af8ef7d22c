"""``purifiers audit``."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from purifiers.cli import options
from purifiers.cli.common import refuse_foreign_baselines, refuse_other_run
from purifiers.errors import CheckpointError, ConfigError, MissingFileError


def audit(
    purifiers: Annotated[list[str], typer.Argument(metavar="RUN|NAME...", help=f"{options.PURIFIERS}.")],
    *,
    changes: options.EvaluationChanges,
    recipe: options.BehindRecipe = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Attack at most N images.")] = None,
    no_checks: Annotated[
        bool, typer.Option("--no-checks", help="Skip the checks of how far the attacks can be trusted.")
    ] = False,
    baselines: Annotated[options.Which, options.baselines()] = "none",
    output: Annotated[Path | None, options.output("the run, if it is one; else runs/audit")] = None,
    device: options.Device = "auto",
) -> None:
    """Attack defended models under every threat model.

    Attack purifier and classifier together: by an attacker who knows both, only the classifier, only other models, or who
    can only send queries. The number to quote is the worst case over all attacks, image by image. Writes audit.json, audit.md
    and audit.html. If interrupted, the same command resumes. Takes hours on two cores; --limit 50 gives a first impression.
    """
    from purifiers.console import duration, say
    from purifiers.evaluation.audit.run import audit_by_name
    from purifiers.evaluation.records import Results
    from purifiers.recipes.load import load_recipe
    from purifiers.reports.audit_report import overview, sentences, write_audit
    from purifiers.reports.run_report import write_card
    from purifiers.runs import RECIPE_FILE, is_run

    overrides = changes.overrides(trained=True)
    overrides += [("audit.images", limit)] if limit else []
    overrides += [("audit.check_images", 0)] if no_checks else []
    runs = [Path(name) for name in purifiers if is_run(name)]
    if recipe and len(runs) == len(purifiers):
        raise ConfigError("--recipe is for purifiers that have no run; a run has its own recipe")
    if baselines == "all" and is_run(purifiers[0]):
        refuse_foreign_baselines(runs[0], load_recipe(runs[0] / RECIPE_FILE, overrides))
    own = runs[0] if len(runs) == len(purifiers) == 1 else None
    folder = output or own or Path("runs/audit")
    refuse_other_run(folder, runs[0] if len(runs) == 1 else None)
    found = audit_by_name(purifiers, overrides, folder, recipe=recipe, device=device, baselines=baselines)
    page = write_audit(found, folder)
    if own and folder.resolve() == own.resolve():
        with suppress(MissingFileError, CheckpointError):  # the run may not have been measured
            write_card(folder, Results.read(folder))
    overview(found).show(caption=True)
    for sentence, red_one in sentences(found):
        say(sentence, style="red" if red_one else None)
    for warning in found.warnings:
        say(f"warning ({warning.attack}, view {warning.view}): {warning.message}")
    say(f"\naudited in {duration(found.seconds)}; open {page}")
