"""Figures and tables of predicted times, for docs/scaling.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.scaling_model import RESOURCES, Outcome, Stage, simulate
from benchmarks.scaling_work import (
    LLAMAS,
    Model,
    cluster_of,
    evaluation_stage,
    llama_shapes,
    merge_stages,
    model_of,
)

WORKERS = [2**power for power in range(10)]
METHOD = "TIES + NAN"
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
SWEPT = "8B"
COLOURS = {
    "dispatch": "#bbbbbb",
    "read": "#9ecae1",
    "compute": "#31a354",
    "write": "#fdae6b",
    "storage read": "#08519c",
    "storage write": "#d94801",
    "network": "#756bb1",
    "longest shard": "#e7298a",
    "serial part": "#252525",
}


def draw(content: dict[str, Any], docs: Path) -> None:
    """Write every figure into ``docs``, and the tables into its ``scaling.md``."""
    settings = {
        "svg.hashsalt": "scaling",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    models = {
        name: model_of(llama_shapes(name), content["assumed"]["fine-tuned models"])
        for name in LLAMAS
    }
    with plt.rc_context(settings):
        _save(_draw_merges(content, models), docs / "scaling_merge.svg")
        _save(_draw_limits(content, models), docs / "scaling_limits.svg")
        if _has_tokens(content):
            _save(_draw_sweep(content, models[SWEPT]), docs / "scaling_sweep.svg")
    _fill_in(docs / "scaling.md", _tables(content, models))


def _has_tokens(content: dict[str, Any]) -> bool:
    return "prefill_seconds_per_token_and_parameter" in content["profile"]["samples"]


def _run(content: dict[str, Any], storage: str, stages: list[Stage], workers: int) -> Outcome:
    assumed = content["assumed"]
    place = assumed["storage"][storage]
    per_node = assumed["workers_per_node"]
    return simulate(stages, cluster_of(content["profile"], place, workers, per_node))


def _merge(content: dict[str, Any], storage: str, model: Model, workers: int) -> Outcome:
    stages = merge_stages(model, content["profile"]["methods"][METHOD])
    return _run(content, storage, stages, workers)


def _draw_merges(content: dict[str, Any], models: dict[str, Model]) -> Figure:
    storages = list(content["assumed"]["storage"])
    figure, axes = plt.subplots(1, len(storages), figsize=(9, 3.6), sharey=True, squeeze=False)
    for axis, storage in zip(axes[0], storages, strict=True):
        for name, model in models.items():
            seconds = [_merge(content, storage, model, n).seconds for n in WORKERS]
            axis.plot(WORKERS, seconds, marker="o", markersize=3, label=name)
        _workers_axis(axis, storage)
        axis.set_yscale("log")
        axis.set_yticks([1, 10, 60, 600, 3600, 6 * 3600], minor=False)
        axis.set_yticklabels(["1 s", "10 s", "1 min", "10 min", "1 h", "6 h"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"predicted time of one {METHOD} merge")
    axes[0][-1].legend(title="parameters", frameon=False)
    return figure


def _workers_axis(axis: Axes, title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(WORKERS)
    axis.set_xticklabels([str(n) for n in WORKERS], fontsize=7)
    axis.set_xlabel("workers (one core each)")
    axis.set_title(title)


def _draw_limits(content: dict[str, Any], models: dict[str, Model]) -> Figure:
    storages, names = list(content["assumed"]["storage"]), ["8B", "405B"]
    figure, axes = plt.subplots(
        len(names), len(storages), figsize=(9, 6), sharex=True, sharey=True, squeeze=False
    )
    for row, name in zip(axes, names, strict=True):
        for axis, storage in zip(row, storages, strict=True):
            found = [_merge(content, storage, models[name], n).shares for n in WORKERS]
            layers = [[100 * shares[part] for shares in found] for part in RESOURCES]
            axis.stackplot(
                WORKERS, layers, labels=RESOURCES, colors=[COLOURS[part] for part in RESOURCES]
            )
            _workers_axis(axis, f"{name}, {storage}")
            axis.set_ylim(0, 100)
            axis.set_xlim(1, WORKERS[-1])
        row[0].set_ylabel("% of the time")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _sweep_stages(content: dict[str, Any], model: Model, workers: int) -> list[Stage]:
    """Merges in one reading, then every merged, fine-tuned and base model scored."""
    profile, sweep = content["profile"], content["assumed"]["sweep"]
    num_models = sweep["merges"] + content["assumed"]["fine-tuned models"] + 1
    merging = merge_stages(model, profile["methods"][METHOD], sweep["merges"])
    scoring = evaluation_stage(model, profile["samples"], sweep, num_models, workers)
    return [*merging, scoring]


def _draw_sweep(content: dict[str, Any], model: Model) -> Figure:
    storages = list(content["assumed"]["storage"])
    figure, axes = plt.subplots(1, len(storages), figsize=(9, 3.6), sharey=True, squeeze=False)
    for axis, storage in zip(axes[0], storages, strict=True):
        found = [_run(content, storage, _sweep_stages(content, model, n), n) for n in WORKERS]
        scoring = [outcome.by_stage["evaluate"] for outcome in found]
        merging = [o.seconds - s for o, s in zip(found, scoring, strict=True)]
        axis.plot(WORKERS, scoring, marker="o", markersize=3, label="scoring")
        axis.plot(WORKERS, merging, marker="o", markersize=3, label="merging")
        _workers_axis(axis, storage)
        axis.set_yscale("log")
        axis.set_yticks([60, 600, 3600, 36_000, 360_000, 3_600_000])
        axis.set_yticklabels(["1 min", "10 min", "1 h", "10 h", "100 h", "1000 h"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    merges = content["assumed"]["sweep"]["merges"]
    axes[0][0].set_ylabel(f"predicted time, {merges} merges of {SWEPT}")
    axes[0][-1].legend(frameon=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    # Without its date, the same numbers give the same file.
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _tables(content: dict[str, Any], models: dict[str, Model]) -> str:
    return "\n\n".join(
        [_costs_table(content), _validation_table(content), _predictions_table(content, models)]
    )


def _costs_table(content: dict[str, Any]) -> str:
    profile = content["profile"]
    storage, machine = profile["storage"], profile["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    lines = [
        f"Measured on {machine['cores']} cores ({machine['processor']}; {packages}); the load "
        f"average was {machine['load_average_at_start']} before it began.",
        "",
        "| cost | |",
        "|---|---:|",
        f"| reading a warm file, one worker / all cores | {storage['worker_read'] / 1e9:.2f} / "
        f"{storage['all_read'] / 1e9:.2f} GB/s |",
        f"| writing and syncing, one worker / all cores | {storage['worker_write'] / 1e9:.2f} / "
        f"{storage['all_write'] / 1e9:.2f} GB/s |",
        f"| handing a task to a worker of Ray | {profile['dispatch_seconds'] * 1e3:.2f} ms |",
    ]
    for name, method in profile["methods"].items():
        for stage in method["stages"]:
            cost = stage["compute_seconds_per_byte"] * 1e9
            lines.append(f"| {name}: computing, stage `{stage['label']}` | {cost:.2f} s per GB |")
        serial = method["serial"]
        lines.append(
            f"| {name}: the driver alone | {serial['fixed']:.2f} s + "
            f"{serial['per_tensor'] * 1e3:.2f} ms per tensor |"
        )
    samples = profile["samples"]
    lines.append(f"| an image through the mini tower | {samples['image_seconds'] * 1e3:.3f} ms |")
    if _has_tokens(content):
        for label, key in (("prefill", "prefill"), ("decode", "decode")):
            cost = samples[f"{key}_seconds_per_token_and_parameter"] * 1e9
            lines.append(f"| {label}, one token | {cost:.3f} s per billion parameters |")
        lines.append(f"| loading a model | {samples['load_seconds_per_byte'] * 1e9:.2f} s per GB |")
    return "\n".join(lines)


def _validation_table(content: dict[str, Any]) -> str:
    lines = [
        "| Ray on this machine | what | predicted | measured | runs | error |",
        "|---|---|---:|---:|---|---:|",
    ]
    for row in content["validation"]:
        runs = ", ".join(f"{seconds:.1f}" for seconds in row["runs"])
        lines.append(
            f"| {row['setting']} | {row['what']} | {row['predicted']:.1f} s | "
            f"{row['measured']:.1f} s | {runs} | {row['error']:+.0%} |"
        )
    return "\n".join(lines)


def _predictions_table(content: dict[str, Any], models: dict[str, Model]) -> str:
    shown = [1, 8, 64, 512]
    lines = [
        "| model | storage | " + " | ".join(f"{n} worker{'s' * (n > 1)}" for n in shown) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for name, model in models.items():
        for storage in content["assumed"]["storage"]:
            found = [_merge(content, storage, model, n) for n in shown]
            cells = [f"{_clock(outcome.seconds)}, {outcome.limit}" for outcome in found]
            lines.append(f"| {name} | {storage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _fill_in(page: Path, text: str) -> None:
    """Replace what stands between the marks of the page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has lost its marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
