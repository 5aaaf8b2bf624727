"""The command that trains a run's models alone: finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    epilog="Examples:\n\nnan-merge finetune configs/quickstart.yaml\n\n"
    "nan-merge finetune run.yaml --output models/\n\n"
    "nan-merge finetune run.yaml experts.finetune.steps=2000 cluster.train.num_gpus=1\n\n"
    "nan-merge finetune run.yaml 'experts.tasks=[Cars, DTD]' 'evaluate.benchmarks=[Cars, DTD]'\n\n"
    "A run file that fine-tunes a pretrained CLIP (docs/images.md has more):\n\n"
    "clip: open_clip://ViT-B-32-quickgelu/openai\n\n"
    "experts: {tasks: [Cars, DTD], finetune: {steps: 2000, learning_rate: 1.0e-5}}\n\n"
    "evaluate: {benchmarks: [Cars, DTD], data: data/}"
)
def finetune(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="Run file (YAML) with a section `experts` or `fine_tunes`."
        ),
    ],
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Copy each model to a folder of its name in here."),
    ] = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Train the models of a run file, one per worker; killed, it goes on where it stood."""
    with explain_errors(debug):
        checked = load_run(config, overrides, address)
        from pipelines.finetune_command import finetune_command

        finetune_command(checked, open_console(), output)
