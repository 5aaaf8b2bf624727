"""The command that searches among merges: sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nan_merge.errors import ConfigError
from pipelines.cli_app import (
    Address,
    Debug,
    Overrides,
    app,
    explain_errors,
    load_run,
    open_console,
)


@app.command(
    epilog="Examples:\n\nnan-merge sweep configs/sweeps/quickstart.yaml\n\n"
    "nan-merge sweep configs/sweeps/quickstart.yaml --list\n\n"
    "nan-merge sweep sweep.yaml sweep.keep=all sweep.dev_share=0.5\n\n"
    "nan-merge sweep sweep.yaml 'sweep.search={name: random, points: 24}' seed=1\n\n"
    "nan-merge sweep sweep.yaml 'sweep.search={name: optuna, points: 40, batch: 8}'"
)
def sweep(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Run file (YAML) with a section `sweep`.")
    ],
    overrides: Overrides = None,
    only_list: Annotated[
        bool, typer.Option("--list", help="Print the merges and stop; nothing is started.")
    ] = False,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Search among many merges on a dev split, and show them on the samples it never saw."""
    with explain_errors(debug):
        checked = load_run(config, overrides, address)
        if checked.sweep is None:
            raise ConfigError(
                f"{config} has no section `sweep`. docs/sweeps.md shows one; a run file without it "
                "is for `nan-merge run`."
            )
        if only_list:
            from pipelines.sweep import refuse_unknown_objective
            from pipelines.sweep_search import listed

            refuse_unknown_objective(checked, checked.sweep)
            for line in listed(checked):
                typer.echo(line)
            return
        from pipelines.run import run_config

        run_config(checked, console=open_console())
