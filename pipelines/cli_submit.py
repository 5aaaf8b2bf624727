"""The command that sends a run to a cluster: submit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_app import Overrides, app, explain_errors, load_run, open_console


@app.command(
    epilog="Examples:\n\n"
    "nan-merge submit run.yaml --address http://head:8265 --storage /shared/me\n\n"
    "nan-merge submit run.yaml --address http://127.0.0.1:8265 --storage /shared/me seed=1\n\n"
    "nan-merge submit run.yaml --address https://ray.example.org --no-wait"
)
def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Run file (YAML).")],
    address: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="Dashboard of the cluster, e.g. http://head:8265.",
        ),
    ],
    overrides: Overrides = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder that every node reaches; relative paths are taken from there.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Repeat with N seeds and show the spread.")
    ] = 1,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job's log until it ends.")
    ] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Send a run to a Ray cluster as a job and follow its log; Ctrl-C leaves it running."""
    with explain_errors(debug):
        from pipelines.submit import submit_run

        checked = load_run(config, overrides)
        code = submit_run(checked, address, open_console(), storage=storage, seeds=seeds, wait=wait)
        raise typer.Exit(code)
