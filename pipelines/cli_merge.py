"""Commands about merging: merge, plan, coefficients, inspect, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_app import (
    Debug,
    Overrides,
    Recipe,
    Staging,
    app,
    explain_errors,
    open_console,
    split_output,
)


@app.command(
    epilog="Examples:\n\nnan-merge merge recipe.yaml merged/\n\n"
    "nan-merge merge recipe.yaml merged-0.3/ method.density=0.3\n\n"
    "nan-merge merge recipe.yaml merged/ coefficients=nan coefficients.target=task_vector\n\n"
    "nan-merge merge recipe.yaml s3://bucket/merged --staging /scratch"
)
def merge(
    recipe: Recipe,
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Folder of the merged model, or its URL in an object store."
        ),
    ],
    overrides: Overrides = None,
    staging: Staging = None,
    debug: Debug = False,
) -> None:
    """Merge models on this machine and write the result to a folder or an object store."""
    with explain_errors(debug):
        from nan_merge.recipe_file import load_recipe

        checked = load_recipe(recipe, overrides or ())
        from pipelines.merge import merge_command

        merge_command(checked, output, open_console(), staging=staging)


@app.command(
    epilog="Examples:\n\nnan-merge plan recipe.yaml\n\n"
    "nan-merge plan recipe.yaml merged/\n\n"
    "nan-merge plan recipe.yaml s3://bucket/merged dtype=bfloat16 shard_bytes=5000000000"
)
def plan(
    recipe: Recipe,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OUT] [KEY=VALUE]",
            show_default=False,
            help="Where the result would go, to check its disk; and changes to the file.",
        ),
    ] = None,
    staging: Staging = None,
    debug: Debug = False,
) -> None:
    """Check, in seconds and from headers alone, whether models can be merged, and at what cost.

    Lists every problem at once. Merges nothing.
    """
    with explain_errors(debug):
        from nan_merge.recipe_file import load_recipe

        output, overrides = split_output(arguments or [])
        checked = load_recipe(recipe, overrides)
        from pipelines.plan import plan_command

        plan_command(checked, output, open_console(), staging=staging)


@app.command(
    epilog="Examples:\n\nnan-merge coefficients recipe.yaml\n\n"
    "nan-merge coefficients recipe.yaml coefficients=nan coefficients.target=task_vector\n\n"
    "nan-merge coefficients recipe.yaml coefficients.scope=layer --all --json table.json"
)
def coefficients(
    recipe: Recipe,
    overrides: Overrides = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="A row per layer or tensor instead of the range.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the whole table as JSON too."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Print the norms and coefficients that a merge would use. Reads the models, merges nothing."""
    with explain_errors(debug):
        from nan_merge.recipe_file import load_recipe

        checked = load_recipe(recipe, overrides or ())
        from pipelines.coefficients import coefficients_command

        coefficients_command(checked, open_console(), show_all=show_all, json_file=json_file)


@app.command(
    epilog="Examples:\n\nnan-merge inspect ./math ./code --base ./base\n\n"
    "nan-merge inspect ./math ./code --base ./base --layers --plot models.svg\n\n"
    "nan-merge inspect ./math --json math.json"
)
def inspect(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Folders, hub ids, or BASE+ADAPTER.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="What they were fine-tuned from. Without it, only weights are described.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Print a table with a row per layer too.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it: FILE.svg, FILE.png or FILE.pdf."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write every number, by layer, as JSON."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Describe models and what fine-tuning changed: norms, means, sign conflicts, cosines."""
    with explain_errors(debug):
        from pipelines.inspect_models import inspect_command

        inspect_command(
            models, base, open_console(), show_layers=layers, plot=plot, json_file=json_file
        )


@app.command(epilog="Examples:\n\nnan-merge verify merged/\n\nnan-merge verify s3://bucket/merged")
def verify(
    output: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder or URL that `nan-merge merge` wrote.")
    ],
    debug: Debug = False,
) -> None:
    """Read a merged model whole and compare every tensor with the hashes in its manifest."""
    with explain_errors(debug):
        from pipelines.merge import verify_command

        verify_command(output, open_console())
