"""The report of a run: one HTML page that needs nothing else, to read, print or send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nan_merge.publish import write_text_atomically
from pipelines.compare_view import benchmarks_sheet, problems_sheet, summary_sheet
from pipelines.pages import render
from pipelines.plots import (
    accuracy_plot,
    coefficients_plot,
    layered_merges,
    layers_plot,
    norms_plot,
)
from pipelines.published import published_differences_sheet, published_sheet
from pipelines.report_sheets import (
    baseline_sheet,
    coefficients_sheet,
    layer_sheets,
    percent,
    sources_sheet,
)
from pipelines.results import RunResults, baseline_model
from pipelines.run_comparison import compare_finished_run
from pipelines.sheet import spread_in_percent
from pipelines.sweep_sections import sweep_sections
from pipelines.sweep_table import shown_results, sweep_sheet
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
LAYERS_CAPTION = (
    "What multiplies each fine-tuned model in each layer, in the merges where that differs, each "
    "on its own scale. Where it differs by tensor, a layer's mean."
)
GPU_NOTE = "GPU paths of this software are unverified, unless a GPU is named among the facts."


def write_report(results: RunResults, folder: Path, published: Published | None = None) -> Path:
    """Write ``report.html`` to ``folder``: scores, differences, plots, coefficients, facts.

    Its plots are also files, ``plots/*.svg``. Older ones are replaced. Differences come from the
    run's answers, paired by sample; where the folder holds no finished run, or one of very many
    models, from what the results hold. Of a sweep's merges, tables show the selected and the best,
    the figures of the search show all. Returns the page's path.

    Args:
        results: What was found, of a sweep with all its merges.
        folder: Where to write.
        published: Numbers from elsewhere to show beside the run's own.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    shown = shown_results(results)
    comparison = compare_finished_run(folder, shown.models())
    sweep = sweep_sections(results)
    plots = {
        "accuracy": accuracy_plot(shown) if shown.rows else "",
        "norms": norms_plot(shown) if any(shown.model_norms.values()) else "",
        "coefficients": coefficients_plot(shown) if coefficients_sheet(shown) else "",
        "layers": layers_plot(shown) if layered_merges(shown) else "",
    }
    page = render(
        "report.html.jinja",
        title=f"{results.name} (seed {results.seed})",
        summary=run_summary(results),
        scores=results_sheet(shown),
        published=published_sheet(shown, published) if published else None,
        published_differences=(
            published_differences_sheet(shown, published) if published else None
        ),
        search=sweep_sheet(results) if results.sweep else None,
        sweep=sweep,
        differences=(
            summary_sheet(comparison)
            if comparison
            else baseline_sheet(results, merged_models(shown))
        ),
        by_benchmark=benchmarks_sheet(comparison) if comparison else None,
        by_problem=problems_sheet(comparison) if comparison else None,
        coefficients=coefficients_sheet(shown),
        accuracy_svg=plots["accuracy"],
        accuracy_caption=ACCURACY_CAPTION.format(error_source(results)),
        norms_svg=plots["norms"],
        norms_caption=NORMS_CAPTION,
        coefficients_svg=plots["coefficients"],
        coefficients_caption=COEFFICIENTS_CAPTION,
        layers_svg=plots["layers"],
        layers_caption=LAYERS_CAPTION,
        layer_sheets=layer_sheets(shown),
        failures=results.failures,
        notes=_notes(results),
        sources=sources_sheet(shown),
        facts=results.facts,
        config_yaml=results.config_yaml,
    )
    plots |= {figure.name: figure.svg for section in sweep for figure in section.figures}
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
    page = render(
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
    selected = [name for name in results.sweep if results.sweep[name].is_selected]
    if averages:
        if chosen := [name for name in selected if name in averages]:
            # The best of many on the samples shown would be flattered by that choice.
            best = max(chosen, key=lambda model: results.sweep[model].objective)
            text += f" The search chose {best}, whose average on samples that it never saw is "
            text += f"{_with_error(averages[best])} %"
        else:
            best = max(averages, key=lambda model: averages[model][0])
            text += " The best average of a merged model is "
            text += f"{_with_error(averages[best])} % ({best})"
        others = {row.model: row.kind for row in results.rows if row.kind != "merged"}
        for model, kind in others.items():
            average = results.average(model)
            # A run of image tasks has one row of a kind, and it is called like it.
            name = kind if model.lower() == kind else model
            text += f", {name} {_with_error(average)} %" if average else ""
        text += "."
    return text


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


def _with_error(average: tuple[float, float]) -> str:
    return f"{percent(average[0])} ± {spread_in_percent(average[1])}"
