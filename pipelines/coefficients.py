"""The coefficients of a recipe on the command line, without merging."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nan_merge.coefficient_reading import measure_coefficients
from nan_merge.coefficient_table import CoefficientTable
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from pipelines.merge import (
    coefficient_notes,
    coefficients_table,
    num_workers,
    tasks_with_progress,
)
from pipelines.output_files import check_output_file, write_json
from pipelines.progress import RunProgress


def coefficients_command(
    recipe: MergeRecipe, console: Console, *, show_all: bool = False, json_file: Path | None = None
) -> None:
    """Measure what a recipe's coefficients need, and print them; merges nothing."""
    check_output_file(json_file, [".json"])
    plan = plan_merge(recipe)
    run_tasks = tasks_with_progress(RunProgress(console))
    table = measure_coefficients(plan, run_tasks, num_workers())
    if json_file is not None:
        write_json(json_file, {"models": list(table.models), **table.as_json()})
    console.print(_every_row(table) if show_all else coefficients_table(table.as_json()))
    for line in _notes(recipe, table):
        console.print(line, markup=False, highlight=False)


def _every_row(table: CoefficientTable) -> Table:
    """A row per layer (or tensor) and model."""
    shown = Table(title="Coefficients", title_justify="left")
    shown.add_column("tensors" if table.scope == "model" else table.scope, overflow="fold")
    shown.add_column("model", overflow="fold")
    for column in ("norm", "alpha", "coefficient"):
        shown.add_column(column, justify="right")
    for key, row in table.coefficients.items():
        norms = table.norms.get(key) or (None,) * len(row)
        cells = zip(table.models, norms, table.alpha[key], row, strict=True)
        for place, (model, *numbers) in enumerate(cells):
            texts = ("-" if number is None else f"{number:.6g}" for number in numbers)
            shown.add_row(escape(key) if place == 0 else "", escape(model), *texts)
    return shown


def _notes(recipe: MergeRecipe, table: CoefficientTable) -> list[str]:
    spec = recipe.coefficients
    formula = (
        f"coefficient = lambda {spec.lambda_:g} x scale {table.scale:.6g} x alpha x weight; "
        f"source {spec.source}, scope {table.scope}."
    )
    if table.norms:
        whose = "weights" if spec.target == "weights" else "task vectors"
        formula += f" Norms are of the {whose}."
    else:
        formula += " No norms were needed."
    if table.scope == "model":
        content = {**table.as_json(), "recipe": recipe.model_dump(mode="json", by_alias=True)}
        return [formula, *coefficient_notes(content)]
    sums = [math.fsum(row) for row in table.coefficients.values()]
    notes = [formula, f"Sums over the models: {min(sums):.6g} to {max(sums):.6g}."]
    if table.norms and len(table.models) > 1 and table.is_nearly_uniform():
        notes.append(
            f"In every {table.scope} the coefficients lie within 1 % of each other: this is, in "
            "effect, uniform weighting."
        )
    return notes
