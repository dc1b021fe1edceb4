"""The `privfm` command: what is typed goes in, one line comes out when it cannot be done.

Results go to standard output, everything else to standard error. No module here imports torch, numpy or pydantic
before a command needs it, so that `privfm --help` answers at once.
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Sequence

import click
import typer.main

from privfm.errors import PrivfmError
from privfm_cli.app import app
from privfm_cli.console import say

__all__ = ["main"]

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see the epilog of `privfm --help` for what the codes mean."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        return _usage(error)
    except PrivfmError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output went away
        return BROKEN_PIPE
    except OSError as error:
        return _fail(_describe(error), 2 if _is_a_bad_path(error) else 1)
    except KeyboardInterrupt as interrupt:
        say("privfm: " + "; ".join(["interrupted", *map(str, interrupt.args)]))
        return INTERRUPTED


def _run(arguments: list[str]) -> None:
    # Not `command.main()`: that prints errors in boxes and swallows Ctrl-C before we can say how to go on.
    command = typer.main.get_command(app)
    with command.make_context("privfm", arguments) as context:
        command.invoke(context)


def _usage(error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.exit_code  # the help was printed when the error was made
    command = error.ctx.command_path if error.ctx is not None else "privfm"
    message = error.format_message()
    where = "" if message.endswith("?") else f"; see {command} --help"
    return _fail(f"{message[:1].lower()}{message[1:].rstrip('.')}{where}", error.exit_code)


def _fail(message: str, exit_code: int) -> int:
    say("privfm: error: " + " ".join(message.split()))
    return exit_code


def _describe(error: OSError) -> str:
    path = error.filename if isinstance(error.filename, str) else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path or 'disk'}: no space left; free some and repeat the command (with --resume for a run)"
    return f"{path}: {error.strerror}" if path and error.strerror else str(error)


def _is_a_bad_path(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError)


if __name__ == "__main__":
    sys.exit(main())
