"""The whole story on a miniature: train, merge, evaluate, record, report; then all over again."""

import json
import os
import sqlite3
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.config import RunConfig
from pipelines.results import read_results
from pipelines.run import run_config

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
TASKS = ("digits", "texture")
MERGES = (
    {"name": "Average", "method": "average"},
    {"name": "TA", "method": "task_arithmetic", "coefficients": {"lambda": 0.3}},
    {"name": "TA + NAN", "method": "task_arithmetic", "coefficients": "nan"},
    {"name": "TIES + NAN", "method": "ties", "coefficients": {"source": "nan", "scale": "norm"}},
)


def miniature(folder: Path, **changes: object) -> RunConfig:
    content = {
        "name": "miniature",
        "run_folder": folder / "run",
        "cache": folder / "cache",
        "experts": {
            "tasks": TASKS,
            "text": {"steps": 5},
            "pretrain": {"steps": 10},
            "finetune": {"steps": 10},
        },
        "merges": MERGES,
        "evaluate": {"benchmarks": TASKS},
        "cluster": {"num_workers": 2},
    }
    return RunConfig.model_validate(content | changes)


def run(config: RunConfig, **options: int) -> str:
    console = Console(file=StringIO(), width=120)
    run_config(config, "name: miniature\n", console=console, **options)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("story")
    os.environ["NAN_MERGE_CACHE"] = str(folder / "hashes")
    return folder, run(miniature(folder))


def test_the_table_and_the_files_are_there(first_run: tuple[Path, str]):
    folder, output = first_run
    for model in ("Pretrained", "Individual", *(str(merge["name"]) for merge in MERGES)):
        assert model in output
    rows = json.loads((folder / "run" / "results.json").read_text())
    assert len(rows) == (2 + len(MERGES)) * len(TASKS)
    for row in rows:
        assert 0 <= row["value"] <= 1
        assert 0 < row["standard_error"] < 0.05
        assert row["num_samples"] == 500
    report = (folder / "run" / "report.html").read_text()
    assert "TIES + NAN" in report
    assert "<svg" in report


def test_scores_are_the_share_of_right_predictions(first_run: tuple[Path, str]):
    folder, _ = first_run
    results = read_results(folder / "run")
    for merge, name in (("TA + NAN", "ta-nan"), ("Average", "average")):
        path = folder / "run" / "predictions" / name / "digits.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        right = sum(line["answer"] == line["target"] for line in lines)
        row = results.row(merge, "digits")
        assert row is not None
        assert row.value == right / 500


def test_coefficients_of_nan_sum_to_half_the_number_of_models(first_run: tuple[Path, str]):
    folder, _ = first_run
    summary = next(merge for merge in read_results(folder / "run").merges if "NAN" in merge.model)
    assert sum(summary.coefficients.values()) == pytest.approx(1.0, abs=1e-6)
    assert summary.norm_target == "weights"
    assert set(summary.norms) == set(TASKS)


def test_mlflow_holds_a_parent_and_a_child_per_model(first_run: tuple[Path, str]):
    folder, _ = first_run
    database = sqlite3.connect(folder / "run" / "mlflow.db")
    (num_runs,) = database.execute("SELECT COUNT(*) FROM runs").fetchone()
    children = "SELECT COUNT(*) FROM tags WHERE key = 'mlflow.parentRunId'"
    (num_children,) = database.execute(children).fetchone()
    assert (num_runs, num_children) == (7, 6)


def test_a_second_run_computes_nothing_and_says_the_same(
    first_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
):
    folder, output = first_run

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started although nothing is left to do")

    monkeypatch.setattr("cluster.session.ray_session", refuse)
    before = (folder / "run" / "results.json").read_bytes()
    again = run(miniature(folder))
    table = [line for line in output.splitlines() if "±" in line]
    assert [line for line in again.splitlines() if "±" in line] == table
    assert (folder / "run" / "results.json").read_bytes() == before


def test_a_changed_merge_is_made_anew_and_nothing_else(first_run: tuple[Path, str]):
    folder, _ = first_run
    checkpoints = folder / "run" / "checkpoints"
    before = {
        path.parent.name: path.stat().st_mtime_ns
        for path in checkpoints.glob("*/model.safetensors")
    }
    changed = dict(MERGES[1]) | {"coefficients": {"lambda": 0.4}}
    run(miniature(folder, merges=(MERGES[0], changed, *MERGES[2:])))
    after = {
        path.parent.name: path.stat().st_mtime_ns
        for path in checkpoints.glob("*/model.safetensors")
    }
    assert {name for name in after if after[name] != before[name]} == {"ta"}


def test_ones_own_models_take_the_same_way(first_run: tuple[Path, str]):
    folder, _ = first_run
    (experts,) = (folder / "cache").glob("experts-*")
    config = miniature(
        folder,
        run_folder=folder / "own",
        experts=None,
        base=str(experts / "clip" / "image_tower"),
        clip=str(experts / "clip"),
        models=[str(experts / task) for task in TASKS],
        track={"mlflow": False},
    )
    run(config)
    trained, own = read_results(folder / "run"), read_results(folder / "own")
    for merge in ("Average", "TA + NAN"):
        assert own.average(merge) == trained.average(merge)
    assert not (folder / "own" / "mlflow.db").exists()
