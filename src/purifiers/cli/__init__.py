"""The command line: a table of typed functions. They parse, call what Python users call, and print.

A function's parameters are its options, its docstring is its help. What it needs is imported in it, so that --help is quick.
"""

import errno
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from inspect import Signature, signature
from itertools import pairwise
from typing import Annotated, Any

import typer

from purifiers.cli.measuring import audit, certify, evaluate
from purifiers.cli.training import demo, reproduce, train
from purifiers.cli.using import app, export, purify, serve
from purifiers.errors import OutOfTime, PurifiersError, Unfinished, explain_missing
from purifiers.version import __version__
from purifiers.weights import CLASSIFIERS, PURIFIERS


def _flat(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer: the fields of its parameter ``changes`` become parameters."""
    own = dict(signature(command).parameters)
    if "changes" not in own:
        return command
    group = own.pop("changes").annotation
    shared = signature(group).parameters

    @wraps(command)
    def run(**values: Any) -> None:
        command(changes=group(**{name: values.pop(name) for name in shared}), **values)

    every = [one.replace(kind=one.KEYWORD_ONLY) for one in (*own.values(), *shared.values())]
    run.__signature__ = Signature(every)  # type: ignore[attr-defined]
    return run


# Plain text: rich would read names such as [1] or :bug: as markup, and its boxes cut paths.
cli = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
for _command in (demo, train, evaluate, reproduce, audit, certify, export, purify, serve, app):
    cli.command()(_flat(_command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"purifiers {__version__}")
        raise typer.Exit


@cli.callback(
    epilog="Start with 'purifiers demo': it trains and measures everything on a small data set, in minutes. "
    f"Shipped purifiers: {', '.join(PURIFIERS)}; classifiers: {', '.join(CLASSIFIERS)}."
)
def _purifiers(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make an image classifier robust to adversarial examples without changing it: train a purifier that cleans each image
    first, measure it, and use it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the command line, by default of this process.

    Returns:
        The exit status: 0, also of a shard that leaves the rest to others; 1 for an error the user can mend; 2 for a mistyped
        command; 3 at the time limit; 130 after Ctrl-C or SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for before, one in pairwise(["purifiers", *arguments]):
        if re.fullmatch("(--[a-z-]+=)?", one):
            return _fail(f"nothing comes after '{one or before}': is a shell variable not set?", 2)
    try:
        with explain_missing():
            status = typer.main.get_command(cli).main(arguments, prog_name="purifiers", standalone_mode=False) or 0
    except typer.TyperException as error:
        command = getattr(error, "ctx", None)
        return _fail(
            f"{error.format_message()}\nTry '{command.command_path if command else 'purifiers'} --help'.", error.exit_code
        )
    except Unfinished as found:
        print(f"purifiers: {found}")
        return 0
    except PurifiersError as error:
        return _fail(str(error), 3 if isinstance(error, OutOfTime) else 1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return _fail(f"{error}{'; free some space, then run the same command again to resume' if full else ''}")
    if status == 130:
        restart = " without --restart" if "--restart" in arguments else ""
        return _fail(f"interrupted; run the same command{restart} to resume", status)
    return status


def _fail(message: str, status: int = 1) -> int:
    print(f"purifiers: {message}", file=sys.stderr)
    return status
