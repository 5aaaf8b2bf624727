"""The command `nan-merge`: reads arguments, calls one function per command, explains errors.

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
from enum import StrEnum
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from nan_merge.errors import DataError, NanMergeError
from pipelines.cli_submit import add_submit
from pipelines.extras import missing_extra
from pipelines.masking import hide_passwords

if TYPE_CHECKING:
    from pipelines.results import RunResults

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
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class SchemaName(StrEnum):
    """What `nan-merge schema` can print."""

    RUN = "run"
    RECIPE = "recipe"


def main() -> None:
    """Entry point of the command; leaves by `SystemExit`."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows "?" for what it lacks; better that than no table.
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    with _explain_errors(debug=False):
        app(prog_name="nan-merge")


class _Output(Console):
    """Standard output; where its reader is gone, the command ends as after any other error."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _console() -> Console:
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


@app.command(
    epilog="Examples:\n\nnan-merge run configs/quickstart.yaml\n\n"
    "nan-merge run configs/quickstart.yaml --seeds 3\n\n"
    "nan-merge run configs/quickstart.yaml seed=1 run_folder=runs/seed1\n\n"
    "nan-merge run run.yaml merges.0.method.density=0.3 cluster.address=auto"
)
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Run file (YAML).")],
    overrides: Overrides = None,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Repeat with N seeds and show the spread.")
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="As cluster.address: local, auto or HOST:PORT."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train or load the models, merge them, evaluate everything, print the table."""
    with _explain_errors(debug):
        from nan_merge.yaml_config import load_config
        from pipelines.config import RunConfig

        joined = [f"cluster.address={address}"] if address else []
        checked = load_config(config, RunConfig, [*(overrides or ()), *joined])
        from pipelines.run import run_config

        run_config(checked, seeds=seeds, console=_console())


@app.command(
    epilog="Examples:\n\nnan-merge merge recipe.yaml merged/\n\n"
    "nan-merge merge recipe.yaml merged-0.3/ method.density=0.3\n\n"
    "nan-merge merge recipe.yaml merged/ coefficients=nan coefficients.target=task_vector"
)
def merge(
    recipe: Recipe,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the merged model.")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Merge models on this machine and write the result to a folder."""
    with _explain_errors(debug):
        from nan_merge.recipe_file import load_recipe

        checked = load_recipe(recipe, overrides or ())
        from pipelines.merge import merge_command

        merge_command(checked, output, _console())


@app.command(
    epilog="Examples:\n\nnan-merge plan recipe.yaml\n\n"
    "nan-merge plan recipe.yaml dtype=bfloat16 shard_bytes=5000000000"
)
def plan(recipe: Recipe, overrides: Overrides = None, debug: Debug = False) -> None:
    """Check whether models can be merged and what it would write; merges nothing."""
    with _explain_errors(debug):
        from nan_merge.recipe_file import load_recipe

        checked = load_recipe(recipe, overrides or ())
        from pipelines.merge import plan_command

        plan_command(checked, _console())


@app.command(
    epilog="Examples:\n\nnan-merge show runs/quickstart\n\n"
    "nan-merge show runs/quickstart runs/quickstart-seed1 --markdown"
)
def show(
    run_folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Folders of finished runs.")
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown instead of a drawn table.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the table of a finished run again; of several runs, the spread over their seeds."""
    with _explain_errors(debug):
        from pipelines import table

        runs = [_read_run(folder) for folder in run_folders]
        _refuse_repeated_seeds(run_folders, runs)
        if markdown:
            single, several = table.markdown_table, table.markdown_seeds_table
            typer.echo(several(runs) if len(runs) > 1 else single(runs[0]))
        else:
            console = _console()
            drawn = (
                table.seeds_table(runs, console.width)
                if len(runs) > 1
                else table.results_table(runs[0], console.width)
            )
            console.print(drawn)


def _read_run(run_folder: Path) -> RunResults:
    from pipelines.results import read_results

    try:
        return read_results(run_folder)
    except FileNotFoundError as error:
        raise DataError(
            f"{run_folder} holds no finished run: {Path(str(error.filename)).name} is missing. "
            "Name the folder that `nan-merge run` printed, e.g. runs/quickstart."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{run_folder} holds damaged results: {error}. Run the same command again."
        ) from error


def _refuse_repeated_seeds(folders: Sequence[Path], runs: Sequence[RunResults]) -> None:
    seen: dict[int, Path] = {}
    for folder, found in zip(folders, runs, strict=True):
        if found.seed in seen:
            raise DataError(
                f"{seen[found.seed]} and {folder} are both of seed {found.seed}, and a spread over "
                "seeds would count it twice. Name one folder per seed."
            )
        seen[found.seed] = folder


@app.command(
    epilog="Examples:\n\nnan-merge schema run > run.schema.json\n\n"
    "nan-merge schema recipe > recipe.schema.json\n\n"
    "Editors use it when the YAML file starts with:\n\n"
    "# yaml-language-server: $schema=run.schema.json"
)
def schema(
    name: Annotated[SchemaName, typer.Argument(help="Which kind of file.")] = SchemaName.RUN,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of a run file or a recipe, for editors."""
    with _explain_errors(debug):
        from nan_merge.recipe import MergeRecipe
        from nan_merge.yaml_config import schema_json
        from pipelines.config import RunConfig

        typer.echo(schema_json(RunConfig if name is SchemaName.RUN else MergeRecipe))


@contextmanager
def _explain_errors(debug: bool) -> Iterator[None]:
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


add_submit(app, _explain_errors, _console)

if __name__ == "__main__":
    main()
