"""Commands about merging: merge, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_app import Debug, Overrides, Recipe, app, explain_errors, open_console


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
    with explain_errors(debug):
        from nan_merge.recipe_file import load_recipe

        checked = load_recipe(recipe, overrides or ())
        from pipelines.merge import merge_command

        merge_command(checked, output, open_console())


@app.command(
    epilog="Examples:\n\nnan-merge plan recipe.yaml\n\n"
    "nan-merge plan recipe.yaml dtype=bfloat16 shard_bytes=5000000000"
)
def plan(recipe: Recipe, overrides: Overrides = None, debug: Debug = False) -> None:
    """Check whether models can be merged and what it would write; merges nothing."""
    with explain_errors(debug):
        from nan_merge.recipe_file import load_recipe

        checked = load_recipe(recipe, overrides or ())
        from pipelines.merge import plan_command

        plan_command(checked, open_console())
