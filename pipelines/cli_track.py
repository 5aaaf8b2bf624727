"""Commands about what others see of a run: track sync, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_app import Debug, app, explain_errors, open_console

track = typer.Typer(no_args_is_help=True, help="Records of runs in MLflow.")
app.add_typer(track, name="track")


@track.command(
    epilog="Examples:\n\nnan-merge track sync\n\nnan-merge track sync runs/quickstart\n\n"
    "MLFLOW_TRACKING_USERNAME=me MLFLOW_TRACKING_PASSWORD=... nan-merge track sync\n\n"
    "nan-merge track sync runs/quickstart --uri https://mlflow.example.org"
)
def sync(
    run_folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN_FOLDER...",
            show_default=False,
            help="Folders of runs; all below runs/ in which records wait if there are none.",
        ),
    ] = None,
    uri: Annotated[
        str | None, typer.Option(metavar="URI", help="The server, instead of the run file's.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Send the records that wait on disk because a server was down or slow."""
    with explain_errors(debug):
        from pipelines.track_sync import sync_command

        sync_command(run_folders or (), uri, open_console())


@app.command(
    epilog="Examples:\n\nnan-merge push merged/ s3://bucket/models/merged\n\n"
    "nan-merge push runs/quickstart/checkpoints/ties hf://me/quickstart-ties\n\n"
    "HF_TOKEN=... nan-merge push merged/ hf://my-org/merged --public"
)
def push(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a merge.")],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DESTINATION", help="URL in an object store, or hf://OWNER/NAME on the hub."
        ),
    ],
    public: Annotated[
        bool, typer.Option("--public", help="A hub repository made here may be seen by all.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Copy a merged checkpoint to an object store or to the Hugging Face hub."""
    with explain_errors(debug):
        from pipelines.push import push_command

        push_command(checkpoint, destination, open_console(), public=public)
