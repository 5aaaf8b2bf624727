"""Results of an invented sweep over the quickstart's tasks, with every kind of figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.results import MergeSummary, ResultRow, RunResults, SweepPoint

TASKS = ("digits", "mnist", "street", "letters", "style", "texture", "photo")
METHODS = {"TA": "task_arithmetic", "TIES": "ties", "DARE": "dare", "drawn": "della"}
LAMBDAS = [round(0.1 * step, 1) for step in range(1, 11)]
LAYERS = {
    f"tower.blocks.{layer}": {
        task: 0.2 + 0.01 * layer + 0.02 * place for place, task in enumerate(TASKS)
    }
    for layer in range(12)
}


def make_swept_results(name: str = "sweep") -> RunResults:
    """Four entries: one key varies in TA, two in TIES, three in DARE, and the last is drawn.

    The first combination of TIES is missing, as if it had failed; the best on the dev split of
    each entry is selected.
    """
    generator = np.random.default_rng(0)
    points: dict[str, SweepPoint] = {}
    rows = [
        ResultRow(kind.title(), kind, "", "", task, "top1", level, 0.02, 350)
        for kind, level in (("pretrained", 0.6), ("individual", 0.78))
        for task in TASKS
    ]
    averages = {"Pretrained": (0.6, 0.012), "Individual": (0.78, 0.011)}
    for group, values in _settings(generator):
        words = [f"{key.rpartition('.')[2]}={value}" for key, value in values.items()]
        model = ", ".join([group, *words])
        scores = _scores(values, generator)
        rows += [
            ResultRow(model, "merged", METHODS[group], "uniform", task, "top1", score, 0.02, 350)
            for task, score in zip(TASKS, scores, strict=True)
        ]
        averages[model] = (float(scores.mean()), 0.013)
        dev = float(scores.mean() + generator.normal(0, 0.004))
        points[model] = SweepPoint(group, values, dev, 0.017, dev, False)
    for group in METHODS:
        own = [model for model in points if points[model].group == group]
        best = max(own, key=lambda model: points[model].objective)
        points[best] = SweepPoint(**{**vars(points[best]), "is_selected": True})
    merges = tuple(
        MergeSummary(
            model,
            METHODS[point.group],
            {},
            "",
            {},
            dict.fromkeys(TASKS, 0.3),
            1.0,
            "checkpoints/m",
            LAYERS if point.group == "DARE" else {},
        )
        for model, point in points.items()
    )
    baseline = averages[next(iter(points))][0]
    return RunResults(
        name=name,
        seed=0,
        rows=tuple(rows),
        merges=merges,
        failures={"TIES, density=0.1, lambda=0.2": "nothing was left"},
        facts={"torch": "2.13.0", "search": "grid, 59 merges scored, 1 failed"},
        config_yaml="name: sweep\n",
        averages=averages,
        differences={model: (averages[model][0] - baseline, 0.006) for model in [*points][1:]},
        sweep=points,
    )


def _settings(generator: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    for scale in LAMBDAS:
        yield "TA", {"coefficients.lambda": scale}
    for density, scale in [*itertools.product([0.1, 0.2, 0.4], LAMBDAS[1::2])][1:]:
        yield "TIES", {"method.density": density, "coefficients.lambda": scale}
    for kind, drop, scale in itertools.product(["uniform", "nan"], [0.5, 0.9], LAMBDAS[::2]):
        yield (
            "DARE",
            {"coefficients": kind, "method.drop_rate": drop, "coefficients.lambda": scale},
        )
    for _ in range(16):
        scale, epsilon = (float(f"{number:.4g}") for number in 10 ** (-2 * generator.random(2)))
        yield "drawn", {"coefficients.lambda": scale, "method.epsilon": epsilon}


def _scores(values: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """Best near a λ of 0.4 and a density of 0.2."""
    away = abs(values["coefficients.lambda"] - 0.4) + abs(values.get("method.density", 0.2) - 0.2)
    levels = np.linspace(0.8, 0.5, len(TASKS))
    return levels - 0.1 * away * np.linspace(0.5, 2, len(TASKS)) + generator.normal(0, 0.004, 7)
