"""Results of an invented run: 15 models on 7 tasks, with names that try to break things."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.results import MergeSummary, ResultRow, RunResults
from tests.kept_ray import KeptRay

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # before Ray is imported: loopback only

TASKS = ("digits", "mnist", "street", "letters", "style", "texture", "photo")
PRETRAINED = (0.918, 0.868, 0.762, 0.576, 0.530, 0.640, 0.386)
INDIVIDUAL = (0.968, 0.948, 0.854, 0.798, 0.748, 0.742, 0.560)
MERGES = (
    # name, method, coefficients, gain over pretrained as a share of individual's
    ("Weight averaging", "average", "uniform", 0.38),
    ("Task Arithmetic (0.3)", "task_arithmetic", "0.3", 0.36),
    ("Task Arithmetic (matched sum)", "task_arithmetic", "matched", -0.60),
    ("Task Arithmetic + NAN (weights)", "task_arithmetic", "nan(weights) x 3.5", -0.60),
    ("Task Arithmetic + NAN (task vectors)", "task_arithmetic", "nan(task_vector) x 3.5", -0.52),
    ("Task Arithmetic + NAN (task vectors, norm scale)", "task_arithmetic", "nan x 2.1", 0.37),
    ("TIES (0.3)", "ties", "0.3", 0.30),
    ("TIES (matched sum)", "ties", "matched", 0.39),
    ("TIES + NAN (weights)", "ties", "nan(weights) x 3.5", 0.39),
    ("TIES + NAN (task vectors)", "ties", "nan(task_vector) x 3.5", 0.35),
    ("TIES + NAN (task vectors, norm scale)", "ties", "nan x 2.1", 0.42),
    ('A <b>bold</b> & "quoted" $x$ 🐙 name', "ties", "<script>alert(1)</script>", 0.20),
    ("../weird/name: 100%|*_`", "ties", "", 0.10),
)
TASK_VECTOR_NORMS = (1.24, 1.14, 1.21, 1.59, 1.38, 1.58, 1.68)


def make_results(seed: int = 0) -> RunResults:
    """15 models on 7 tasks; the last merge misses its last task, as if it had failed there."""
    rows = _rows("pretrained", "pretrained", "", "", PRETRAINED)
    rows += _rows("individual", "individual", "", "", INDIVIDUAL)
    merges = []
    for index, (name, method, coefficients, share) in enumerate(MERGES):
        values = [
            # A wobble of up to a point, so that no two columns rank alike; more with the seed.
            round(low + share * (high - low) + ((index * 7 + task * 5) % 11 - 5) * 0.002, 3)
            for task, (low, high) in enumerate(zip(PRETRAINED, INDIVIDUAL, strict=True))
        ]
        shifted = [value + seed * 0.004 * (-1) ** index for value in values]
        rows += _rows(name, "merged", method, coefficients, shifted)
        merges.append(_merge(name, method, coefficients))
    return RunResults(
        name="quickstart",
        seed=seed,
        rows=tuple(rows[:-1]),
        merges=tuple(merges),
        failures={'evaluate "../weird/name" <photo>': "the worker died: <killed> & gone"},
        facts={"torch": "2.13.0", "device": "cpu", "base digest": "xxh3:0123456789abcdef"},
        config_yaml="name: quickstart  # <not a tag> & co\nseed: 0\n",
        model_norms={
            "weights": {task: 52.07 + 0.01 * index for index, task in enumerate(TASKS)},
            "task_vector": dict(zip(TASKS, TASK_VECTOR_NORMS, strict=True)),
        },
    )


def make_tiny_results(seed: int = 0, gain: float = 0.0) -> RunResults:
    """Two merges of two tasks with numbers that are easy to work with by hand."""
    rows = [
        ResultRow("base", "pretrained", "", "", "a", "top1", 0.5, 0.03, 100),
        ResultRow("base", "pretrained", "", "", "b", "top1", 0.7, 0.04, 200),
        ResultRow("TA", "merged", "task_arithmetic", "0.3", "a", "top1", 0.6, 0.03, 100),
        ResultRow("TA", "merged", "task_arithmetic", "0.3", "b", "top1", 0.8, 0.04, 200),
        ResultRow("TIES", "merged", "ties", "nan", "a", "top1", 0.64 + gain, 0.06, 100),
        ResultRow("TIES", "merged", "ties", "nan", "b", "top1", 0.78 + gain, 0.08, 200),
    ]
    return RunResults(name="tiny", seed=seed, rows=tuple(rows), merges=())


def _rows(model, kind, method, coefficients, values) -> list[ResultRow]:
    return [
        ResultRow(
            model, kind, method, coefficients, task, "top1", v, (v * (1 - v) / 500) ** 0.5, 500
        )
        for task, v in zip(TASKS, values, strict=True)
    ]


def _merge(name: str, method: str, coefficients: str) -> MergeSummary:
    uses_norms = coefficients.startswith("nan")
    target = "weights" if "weights" in coefficients else "task_vector"
    scale = 2.1 if "2.1" in coefficients else 3.5 if uses_norms or "matched" in coefficients else 1
    inverse = [1 / norm if target == "task_vector" else 1.0 for norm in TASK_VECTOR_NORMS]
    alpha = [value / sum(inverse) for value in inverse] if uses_norms else [1 / 7] * 7
    return MergeSummary(
        model=name,
        method=method,
        norms=dict(zip(TASKS, TASK_VECTOR_NORMS, strict=True)) if uses_norms else {},
        norm_target=target if uses_norms else "",
        alpha=dict(zip(TASKS, alpha, strict=True)),
        coefficients={task: a * scale for task, a in zip(TASKS, alpha, strict=True)},
        scale=scale,
        folder="checkpoints/merge",
    )


@pytest.fixture(scope="package")
def kept_ray() -> Iterator[KeptRay]:
    """Closed after the last test of this folder."""
    kept = KeptRay()
    yield kept
    kept.close()


@pytest.fixture(scope="module", autouse=True)
def shared_ray(kept_ray: KeptRay) -> Iterator[None]:
    """Runs in this process share one Ray; a file that needs its own overrides this.

    That a session ends with its run is shown in tests/cluster, and by the runs of test_bad_input
    and of tests/configs, which have a process and a Ray of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.session.ray_session", kept_ray.ray_session)
        yield


@pytest.fixture(scope="package")
def miniature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of runs that train the same small towers: the first of them does, whichever."""
    return tmp_path_factory.mktemp("miniature-cache")


@pytest.fixture
def results() -> RunResults:
    return make_results()


@pytest.fixture
def tiny() -> RunResults:
    return make_tiny_results()


@pytest.fixture
def seeds() -> list[RunResults]:
    return [make_results(seed) for seed in range(3)]


@pytest.fixture
def tiny_seeds() -> list[RunResults]:
    """TIES gains 0, 1 and 3 points with the seed; everything else stays."""
    return [make_tiny_results(seed, gain) for seed, gain in enumerate((0.0, 0.01, 0.03))]
