"""Commands about runs: run, status, show, schema."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nan_merge.errors import DataError
from pipelines.cli_app import (
    Address,
    Debug,
    Overrides,
    app,
    explain_errors,
    load_run,
    open_console,
)

if TYPE_CHECKING:
    from pipelines.results import RunResults


class SchemaName(StrEnum):
    """What `nan-merge schema` can print."""

    RUN = "run"
    RECIPE = "recipe"


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
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Train or load the models, merge them, evaluate everything, print the table."""
    with explain_errors(debug):
        checked = load_run(config, overrides, address)
        from pipelines.run import run_config

        run_config(checked, seeds=seeds, console=open_console())


@app.command(
    epilog="Examples:\n\nnan-merge show runs/quickstart\n\n"
    "nan-merge show runs/quickstart runs/quickstart-seed1 --markdown\n\n"
    "nan-merge show runs/table2-smollm2 --published"
)
def show(
    run_folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Folders of finished runs.")
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown instead of a drawn table.")
    ] = False,
    published: Annotated[
        bool,
        typer.Option("--published", help="Print it beside the numbers under `published`."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the table of a finished run again; of several runs, the spread over their seeds."""
    with explain_errors(debug):
        from pipelines import table
        from pipelines.sweep_table import shown_results

        runs = [_read_run(folder) for folder in run_folders]
        _refuse_repeated_seeds(run_folders, runs)
        if published:
            for folder, found in zip(run_folders, runs, strict=True):
                _show_published(folder, found, markdown)
            return
        if markdown:
            single, several = table.markdown_table, table.markdown_seeds_table
            typer.echo(several(runs) if len(runs) > 1 else single(shown_results(runs[0])))
        else:
            console = open_console()
            drawn = (
                table.seeds_table(runs, console.width)
                if len(runs) > 1
                else table.results_table(shown_results(runs[0]), console.width)
            )
            console.print(drawn)


@app.command(
    epilog="Examples:\n\nnan-merge status runs/quickstart\n\n"
    "nan-merge status runs/quickstart --json"
)
def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: Debug = False,
) -> None:
    """Say what of a run is done, what is running, and what failed and why."""
    with explain_errors(debug):
        from pipelines.status_view import status_command

        status_command(run_folder, open_console(), as_json)


def _show_published(folder: Path, results: RunResults, as_markdown: bool) -> None:
    from nan_merge.yaml_config import load_config
    from pipelines.config import RunConfig
    from pipelines.published import published_differences_sheet, published_sheet
    from pipelines.sheet import markdown, rich_table

    numbers = load_config(folder / "config.yaml", RunConfig).published
    if numbers is None:
        raise DataError(f"{folder / 'config.yaml'} has no section `published` to print beside.")
    console = open_console()
    for sheet in (
        published_sheet(results, numbers),
        published_differences_sheet(results, numbers),
    ):
        if sheet is not None and as_markdown:
            typer.echo(markdown(sheet))
        elif sheet is not None:
            console.print(rich_table(sheet, console.width))


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
    with explain_errors(debug):
        from nan_merge.recipe import MergeRecipe
        from nan_merge.yaml_config import schema_json
        from pipelines.config import RunConfig

        typer.echo(schema_json(RunConfig if name is SchemaName.RUN else MergeRecipe))
