"""The report of a run: one HTML page that needs nothing else, to read, print or send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.errors import MissingExtraError
from nan_merge.publish import write_text_atomically
from pipelines.compare_view import benchmarks_sheet, summary_sheet
from pipelines.plots import accuracy_plot, coefficients_plot, norms_plot
from pipelines.published import published_differences_sheet, published_sheet
from pipelines.results import RunResults, baseline_model
from pipelines.run_comparison import compare_finished_run
from pipelines.sheet import MISSING, UNKNOWN_ERRORS, Cell, Line, Sheet, spread_in_percent
from pipelines.table import (
    differences_sheet,
    error_source,
    merged_models,
    metric_name,
    results_sheet,
    sample_counts,
    seeds_sheet,
)

if TYPE_CHECKING:
    from pipelines.published_config import Published

TEMPLATES = Path(__file__).parent / "templates"
ACCURACY_CAPTION = (
    "One panel per benchmark, each on its own scale. Dots are merged models with one standard "
    "error over {}; lines are the models that were not merged."
)
NORMS_CAPTION = (
    "Norm of each fine-tuned model's weights and of its task vector (fine-tuned minus base), each "
    "on its own scale that does not start at zero. NAN weighs a model by the inverse of its norm."
)
COEFFICIENTS_CAPTION = (
    "What multiplies each fine-tuned model (columns) in each merge (rows), scale included. "
    "White is an equal share of the row's sum."
)
GPU_NOTE = "GPU paths of this software are unverified, unless a GPU is named among the facts."


def write_report(results: RunResults, folder: Path, published: Published | None = None) -> Path:
    """Write ``report.html`` to ``folder``: scores, differences, plots, coefficients, facts.

    Its plots are also files, ``plots/*.svg``. Older ones are replaced. Differences come from the
    run's answers, paired by sample; where the folder holds no finished run, from the averages'
    errors. Returns the page's path.

    Args:
        results: What to show.
        folder: Where to write.
        published: Numbers from elsewhere to show beside the run's own.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    comparison = compare_finished_run(folder)
    plots = {
        "accuracy": accuracy_plot(results) if results.rows else "",
        "norms": norms_plot(results) if any(results.model_norms.values()) else "",
        "coefficients": coefficients_plot(results) if coefficients_sheet(results) else "",
    }
    page = _render(
        "report.html.jinja",
        title=f"{results.name} (seed {results.seed})",
        summary=run_summary(results),
        scores=results_sheet(results),
        published=published_sheet(results, published) if published else None,
        published_differences=(
            published_differences_sheet(results, published) if published else None
        ),
        differences=summary_sheet(comparison) if comparison else baseline_sheet(results),
        by_benchmark=benchmarks_sheet(comparison) if comparison else None,
        coefficients=coefficients_sheet(results),
        accuracy_svg=plots["accuracy"],
        accuracy_caption=ACCURACY_CAPTION.format(error_source(results)),
        norms_svg=plots["norms"],
        norms_caption=NORMS_CAPTION,
        coefficients_svg=plots["coefficients"],
        coefficients_caption=COEFFICIENTS_CAPTION,
        failures=results.failures,
        notes=_notes(results),
        facts=results.facts,
        config_yaml=results.config_yaml,
    )
    for name, drawing in plots.items():
        if drawing:
            # On its own a drawing has no page behind it, which may be dark where it is shown.
            alone = drawing.replace("height:auto", "height:auto;background:#fff", 1)
            write_text_atomically(folder / "plots" / f"{name}.svg", alone)
    write_text_atomically(folder / "report.html", page)
    return folder / "report.html"


def write_seeds_report(results: Sequence[RunResults], folder: Path) -> Path:
    """Write ``seeds_report.html`` to ``folder``: spread over seeds and differences paired by seed.

    Every merged model is compared to `baseline_model`.
    """
    first = results[0]
    baseline = baseline_model(first)
    pairs = [(model, baseline) for model in merged_models(first) if baseline and model != baseline]
    seeds = ", ".join(str(run.seed) for run in results)
    page = _render(
        "seeds_report.html.jinja",
        title=f"{first.name} over seeds {seeds}",
        summary=(
            f"The run {first.name} was repeated with {len(results)} seeds ({seeds}). "
            f"Seed {first.seed} alone: {run_summary(first)}"
        ),
        scores=seeds_sheet(results),
        differences=differences_sheet(results, pairs) if pairs else None,
        failures={
            f"seed {run.seed}: {what}": why for run in results for what, why in run.failures.items()
        },
        notes=[
            "± is the sample standard deviation over seeds (n − 1), uncertain if seeds are few.",
            "Differences are paired by seed, because a seed moves all models together.",
            GPU_NOTE,
        ],
        runs=[
            {
                "seed": run.seed,
                # Two figures on a page must not share the ids of their letters.
                "accuracy_svg": accuracy_plot(run, prefix=f"seed{run.seed}"),
                "caption": ACCURACY_CAPTION.format(error_source(run)),
                "facts": run.facts,
            }
            for run in results
        ],
        config_yaml=first.config_yaml,
    )
    write_text_atomically(folder / "seeds_report.html", page)
    return folder / "seeds_report.html"


def run_summary(results: RunResults) -> str:
    """What was run and what came out, in a few sentences."""
    merged = merged_models(results)
    fine_tuned = dict.fromkeys(name for merge in results.merges for name in merge.coefficients)
    methods = dict.fromkeys(row.method for row in results.rows if row.kind == "merged")
    text = (
        f"{len(fine_tuned)} fine-tuned models were merged in {len(merged)} ways "
        f"({', '.join(methods)})"
        if merged
        else "No model was merged"
    )
    text += (
        f"; {len(results.models())} rows of scores on {len(results.benchmarks())} benchmarks "
        f"({metric_name(results)}, n = {sample_counts(results)} test samples each)."
    )
    averages = {model: found for model in merged if (found := results.average(model))}
    if averages:
        best = max(averages, key=lambda model: averages[model][0])
        text += f" The best average of a merged model is {_with_error(averages[best])} % ({best})"
        others = {row.model: row.kind for row in results.rows if row.kind != "merged"}
        for model, kind in others.items():
            average = results.average(model)
            # A run of image tasks has one row of a kind, and it is called like it.
            name = kind if model.lower() == kind else model
            text += f", {name} {_with_error(average)} %" if average else ""
        text += "."
    return text


def baseline_sheet(results: RunResults) -> Sheet | None:
    """Each merged model's average minus the baseline's, in percentage points.

    Its standard error is paired by sample. In results of older versions it treats the two averages
    as independent, although all models answer the same samples, which makes scores move together:
    there the true error is smaller, as a rule.
    """
    baseline = baseline_model(results)
    reference = results.average(baseline) if baseline else None
    if baseline is None or reference is None:
        return None
    lines = []
    for model in merged_models(results):
        average = results.average(model)
        if model == baseline:
            cells = (Cell(_percent(reference[0])), Cell("baseline"), Cell(""))
        elif average is None:
            cells = (Cell(MISSING),) * 3
        else:
            unpaired = (average[0] - reference[0], math.hypot(average[1], reference[1]))
            difference, error = results.differences.get(model, unpaired)
            ratio = f"{difference / error:+.1f}" if error > 0 else MISSING
            cells = (
                Cell(_percent(average[0])),
                Cell(f"{difference * 100:+.2f}", spread_in_percent(error, 2)),
                Cell(ratio),
            )
        lines.append(Line(model, cells))
    caption = f"Average minus that of {baseline}, in percentage points; ±: standard error of the "
    caption += (
        f"difference, paired by sample, over {error_source(results)}; few make it uncertain. "
        if results.averages
        else "difference as if the two models had answered different samples. They answered the "
        "same ones, so this is conservative: the true error is smaller, as a rule. "
    )
    caption += "A difference within two errors is not told apart from none by this table."
    if any(cell.spread == MISSING for line in lines for cell in line.cells):
        caption += UNKNOWN_ERRORS
    columns = ("average", "difference", "in errors")
    return Sheet(f"Differences to {baseline}", "merged model", columns, tuple(lines), caption)


def coefficients_sheet(results: RunResults) -> Sheet | None:
    """Coefficients of every merge with the norms' target and the scale behind them."""
    merges = [merge for merge in results.merges if merge.coefficients]
    models = list(dict.fromkeys(name for merge in merges for name in merge.coefficients))
    lines = tuple(
        Line(
            merge.model,
            (
                Cell(merge.norm_target.replace("_", " ") or MISSING),
                Cell(f"{merge.scale:.4g}"),
                *(
                    Cell(
                        f"{merge.coefficients[name]:.4f}" if name in merge.coefficients else MISSING
                    )
                    for name in models
                ),
                Cell(f"{sum(merge.coefficients.values()):.3f}"),
            ),
        )
        for merge in merges
    )
    caption = (
        "Norm of: what the weights alpha were made from. Scale: the factor from alpha to the "
        "coefficients shown, lambda included."
    )
    columns = ("norm of", "scale", *models, "sum")
    return Sheet("Coefficients", "merge", columns, lines, caption) if merges else None


def _notes(results: RunResults) -> list[str]:
    about_errors, shared = _about_errors(results)
    return [
        f"n = {sample_counts(results)} test samples per benchmark. {about_errors} It says nothing "
        "about another training seed, which can move scores by more.",
        f"The average weighs every benchmark equally; its ± {shared}. A model that misses a "
        "benchmark has no average.",
        "* marks the best merged model of a column, however small its lead.",
        GPU_NOTE,
    ]


def _about_errors(results: RunResults) -> tuple[str, str]:
    """What the errors of scores are over, and how those of averages come from them."""
    if error_source(results) == "questions":
        return (
            "± is the standard error over questions, each subset on its own; a question that is "
            "there twice counts once. With few questions it is uncertain itself: a ± of 0 beside "
            "a score of 0 or 100 says that all answers were alike, not that the score is exact."
        ), "adds the errors of the benchmarks"
    if results.averages:
        return (
            "± is the standard error over the sources of these samples (fonts, picture cells, "
            "scans): samples of one source do not count as independent. Where sources are few, as "
            "fonts are, it is uncertain and more likely too small."
        ), "takes into account that benchmarks share sources"
    return (
        "± is the sampling error over these samples only."
    ), "adds the errors of the benchmarks as independent"


def _percent(value: float) -> str:
    return f"{value * 100:.1f}"


def _with_error(average: tuple[float, float]) -> str:
    return f"{_percent(average[0])} ± {spread_in_percent(average[1])}"


def _render(template: str, **values: Any) -> str:
    """Fill a template; everything is escaped but the figures, which are our own."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError(
            "the report needs jinja2: pip install 'nan-merge[track]'"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template(template).render(values)
