"""The command line: parses, calls, prints."""

import errno
import sys
from collections.abc import Sequence

from purifiers.cli.commands import fail
from purifiers.cli.parser import make_parser
from purifiers.errors import OutOfTime, PurifiersError, explain_missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for an error that the user can mend, 3 at --minutes, 130 after Ctrl-C."""
    parsed, unknown = make_parser().parse_known_args(arguments)
    if unknown:
        parsed.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        with explain_missing():
            return int(parsed.command(parsed))
    except OutOfTime as stopped:
        print(f"purifiers: {stopped}", file=sys.stderr)
        return 3
    except PurifiersError as error:
        return fail(str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; free some space and run the same command again: it goes on where it stopped" if full else ""
        return fail(f"{error}{advice}")
    except KeyboardInterrupt:
        without = " (without --restart)" if "restart" in parsed else ""
        fail(f"stopped; nothing finished is lost: the same command{without} goes on from there")
        return 130
