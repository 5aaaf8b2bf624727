"""The command line's app: shared arguments, the console, and how errors are explained.

Exit codes: 0 done, 2 an error (the message says what to mend), 130 interrupted by Ctrl-C.
Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from nan_merge.errors import NanMergeError
from pipelines.extras import missing_extra
from pipelines.masking import hide_passwords

if TYPE_CHECKING:
    from pipelines.config import RunConfig

ERROR, INTERRUPTED = 2, 130
MAX_MESSAGE = 1000  # letters of an error that we did not foresee

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        show_default=False,
        help="Changes to the file, e.g. seed=1 or method.density=0.3; values are YAML.",
    ),
]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file with one merge.")]
Staging = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where a result is made before it goes to an object store; by default the folder "
        "`outputs` beside the cache that NAN_MERGE_STORE_CACHE names, or in ~/.cache/nan-merge.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="As cluster.address: local, auto or HOST:PORT."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def load_run(
    config: Path, overrides: Sequence[str] | None, address: str | None = None
) -> RunConfig:
    """A run file with the changes of the command line; ``--address`` is the last of them."""
    from nan_merge.recipe_file import refuse_recipe
    from nan_merge.yaml_config import check_document
    from nan_merge.yaml_text import read_document
    from pipelines.config import RunConfig

    document = read_document(config)
    refuse_recipe(document)
    joined = [f"cluster.address={address}"] if address else []
    return check_document(document, RunConfig, [*(overrides or ()), *joined])


def split_output(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """Tell `[OUT] [KEY=VALUE]...` apart: the first is a folder unless it is a change to the file.

    >>> split_output(["merged", "seed=1"])
    ('merged', ['seed=1'])
    >>> split_output(["seed=1"])
    (None, ['seed=1'])
    >>> split_output(["./odd=name"])
    ('./odd=name', [])
    """
    if not arguments:
        return None, arguments
    key, equals, _ = arguments[0].partition("=")
    if equals and os.sep not in key:
        return None, arguments
    return arguments[0], arguments[1:]


class _Output(Console):
    """Standard output; where its reader is gone, the command ends as after any other error."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def open_console() -> Console:
    """Standard output; a file or a pipe, which has no width, is 100 columns wide."""
    console = _Output()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100
    return console


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nan-merge {version('nan-merge')}")
        raise typer.Exit


@app.callback(
    epilog="Start here:\n\nnan-merge run configs/quickstart.yaml\n\n"
    "nan-merge merge recipe.yaml merged/\n\nnan-merge COMMAND --help shows examples."
)
def nan_merge(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="NAN_MERGE_DEBUG", help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Merge fine-tuned models, evaluate the results in parallel, compare them."""
    if debug:
        # The commands look here; so do the workers that they start.
        os.environ["NAN_MERGE_DEBUG"] = "1"


@contextmanager
def explain_errors(debug: bool) -> Iterator[None]:
    """Turn an exception into one message on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _print_message("", "Interrupted. Run the same command again to continue.")
        _leave(INTERRUPTED, debug)
    except BrokenPipeError:
        _forget_stdout()  # whoever read the output has left and wants no message
        _leave(ERROR, debug)
    except Exception as error:
        if isinstance(error, typer.Exit | typer.Abort):
            raise
        _print_message(*_explain(error))
        _leave(ERROR, debug)


def _explain(error: BaseException) -> tuple[str, str]:
    """Prefix and text of the message for an error."""
    # Ray raises what a worker raised with the worker's traceback in its text.
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    if isinstance(error, NanMergeError):
        return "error:", str(error)
    if isinstance(error, ModuleNotFoundError):
        return "error:", str(missing_extra((error.name or str(error)).partition(".")[0]))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = error.filename or "where the output goes"
        _forget_stdout()
        return "error:", f"No space left on the disk: {place}. Free some and run it again."
    what = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_MESSAGE]
    return "internal error:", f"{what}; rerun with --debug for the traceback and report it"


def _forget_stdout() -> None:
    """Let what is still buffered go nowhere; Python would fail on it when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _leave(code: int, debug: bool) -> None:
    if debug or os.environ.get("NAN_MERGE_DEBUG", "") not in ("", "0"):
        print(hide_passwords(traceback.format_exc()), file=sys.stderr, end="")
    # Not typer.Exit: that only means something within a command.
    sys.exit(code)


def _print_message(prefix: str, message: str) -> None:
    console = Console(stderr=True)
    message = hide_passwords(message)
    text = Text.assemble((prefix, "bold red"), " " if prefix else "", message)
    console.print(text, soft_wrap=True)
