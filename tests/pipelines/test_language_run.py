"""A run file over language models, end to end: merges, answers, table, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from evaluators.torchvision_repair import repair
from nan_merge.errors import ConfigError
from nan_merge.yaml_config import load_config
from pipelines.config import RunConfig
from pipelines.report import write_report
from pipelines.results import read_results
from pipelines.run import run_config
from tests.benchmark_folders import write_gsm8k, write_mmlu
from tests.language_checkpoints import make_tiny_llama

repair()
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("ray")


def run_file(folder: Path) -> dict:
    return {
        "name": "small",
        "run_folder": str(folder / "run"),
        "base": str(folder / "base"),
        "models": [{"path": str(folder / name), "name": name} for name in ("math", "chat")],
        "merges": [
            {"name": "TA", "method": "task_arithmetic"},
            {
                "name": "TA + NAN",
                "method": "task_arithmetic",
                "coefficients": {"source": "nan", "target": "task_vector"},
            },
        ],
        "evaluate": {
            "benchmarks": ["mmlu", {"name": "gsm8k", "max_tokens": 4, "limit": 2}],
            "backend": {"name": "transformers", "dtype": "float32", "device": "cpu"},
            "data": str(folder / "data"),
        },
        "track": {"mlflow": False},
        "published": {
            "source": "a table",
            "scores": {"TA": {"mmlu": 56.3, "gsm8k": 52.7}, "another model": {"mmlu": 1.0}},
        },
    }


def load(folder: Path, content: dict) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_config(path, RunConfig)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_over_language_models_gives_a_table_and_a_report(tmp_path, monkeypatch):
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    for seed, name in enumerate(("base", "math", "chat")):
        make_tiny_llama(tmp_path / name, seed=seed)
    write_mmlu(tmp_path / "data" / "mmlu", 1)
    write_gsm8k(tmp_path / "data" / "gsm8k")
    config = load(tmp_path, run_file(tmp_path))
    console = Console(width=120, record=True, file=(tmp_path / "log").open("w"))
    (results,) = run_config(config, console=console)
    assert results.models() == ["Pretrained", "math", "chat", "TA", "TA + NAN"]
    assert results.benchmarks() == ["mmlu", "gsm8k"]
    assert {row.metric for row in results.rows} == {"accuracy"}
    row = results.row("TA", "mmlu")
    assert row is not None and row.num_samples == 57
    average = results.average("TA")
    values = [found.value for found in results.rows if found.model == "TA"]
    assert average is not None and average[0] == pytest.approx(sum(values) / 2)
    assert set(results.differences) == {"TA + NAN"}
    table = console.export_text()
    assert "accuracy in %" in table and "math" in table
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Beside a table" in page and "56.3" in page
    assert "protocol of mmlu/oc-ppl" in page
    assert read_results(tmp_path / "run") == results
    # The comparison in the report reads the answers anew, and finds the table's differences.
    compared = json.loads((tmp_path / "run" / "comparison.json").read_text())
    ours = next(model for model in compared["models"] if model["model"] == "TA + NAN")
    assert (ours["average"]["value"], ours["average"]["standard_error"]) == pytest.approx(
        results.differences["TA + NAN"]
    )
    assert ours["benchmarks"]["gsm8k"]["num_samples"] == 2  # of the limit, not of the data
    # Once more: everything is read, nothing asked, and the results are the same.
    before = (tmp_path / "run" / "results.json").read_bytes()
    again = Console(width=120, record=True, file=(tmp_path / "log2").open("w"))
    run_config(config, console=again)
    assert "Asking" not in again.export_text()
    assert (tmp_path / "run" / "results.json").read_bytes() == before


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_seeds_are_run_recorded_and_compared(tmp_path, monkeypatch):
    """A merge that draws at random differs with the seed; the others are as they were."""
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    for seed, name in enumerate(("base", "math", "chat")):
        make_tiny_llama(tmp_path / name, seed=seed)
    write_mmlu(tmp_path / "data" / "mmlu", 2)
    write_gsm8k(tmp_path / "data" / "gsm8k")
    content = run_file(tmp_path) | {
        "merges": [
            {"name": "TA", "method": "task_arithmetic"},
            {"name": "DARE", "method": {"name": "dare_linear", "density": 0.5}},
        ],
        "track": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "small"},
    }
    content["evaluate"]["benchmarks"][1]["limit"] = 1
    console = Console(width=120, record=True, file=(tmp_path / "log").open("w"))
    first, second = run_config(load(tmp_path, content), seeds=2, console=console)
    assert (first.seed, second.seed) == (0, 1)
    for name, is_same in (("ta", True), ("dare", False)):
        folders = [tmp_path / run / "checkpoints" / name for run in ("run", "run-seed1")]
        one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
        assert (one == other) == is_same
    text = console.export_text()
    # The second time only DARE has other weights; the others' answers are taken over.
    assert 0 < text.count("Asking 5 models") == text.count("Asking 1 model")
    for name, is_same in (("pretrained", True), ("math", True), ("ta", True), ("dare", False)):
        folders = [tmp_path / run / "predictions" / name for run in ("run", "run-seed1")]
        one, other = (
            {path.name: path.read_bytes() for path in each.glob("*.jsonl")} for each in folders
        )
        assert (one == other) == is_same and len(one) == len(other) == 2
    assert "mean ± sample standard deviation over seeds 0, 1" in " ".join(text.split())
    assert "note: gsm8k: samples in which no answer was found, counted as wrong: " in text
    assert (tmp_path / "run-2seeds" / "seeds_report.html").is_file()

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {run.info.run_name for run in parents} == {"small (seed 0)", "small (seed 1)"}
    # A parent; a child for each model; below it a run for each of two benchmarks.
    assert len(runs) == 2 * (1 + 3 * len(first.models()))
    for parent in parents:
        assert "without an answer_ gsm8k" in " ".join(parent.data.params)
    children = [run for run in runs if run.info.run_name == "DARE"]
    for child in children:
        metrics = child.data.metrics
        assert {"accuracy/mmlu", "accuracy_se/mmlu", "accuracy/gsm8k"} <= metrics.keys()
        assert "accuracy_se/gsm8k" not in metrics  # unknown of a single sample
        assert child.data.params["method"] == "dare_linear"
        below = [
            run.info.run_id
            for run in runs
            if run.data.tags.get("mlflow.parentRunId") == child.info.run_id
        ]
        files = [file for run in below for file in client.list_artifacts(run, "predictions")]
        assert {file.path.split("/")[1].split(".")[0] for file in files} == {"mmlu", "gsm8k"}


def test_a_benchmark_of_ones_own_needs_no_folder_of_data(tmp_path, monkeypatch):
    from pipelines.preflight import check_run

    monkeypatch.delenv("NAN_MERGE_DATA", raising=False)
    file = tmp_path / "capitals.yaml"
    file.write_text(
        "name: capitals\nquestions: capitals.jsonl\nprompt: '{{ land }}?'\ngold: '{{ city }}'\n"
        "extract: {kind: regex, pattern: '[A-Z]+'}\n"
    )
    content = run_file(tmp_path)
    content["evaluate"] |= {"benchmarks": [str(file)], "data": None}
    check_run(load(tmp_path, content))  # the tables lie beside the file
    content["evaluate"]["benchmarks"] = ["mmlu", str(file)]
    with pytest.raises(ConfigError, match="Where is the data of mmlu"):
        check_run(load(tmp_path, content))


def test_published_rows_that_the_run_lacks_stay_visible(tmp_path, tiny_results_of_two):
    results, published = tiny_results_of_two
    write_report(results, tmp_path, published)
    page = (tmp_path / "report.html").read_text()
    assert "another model" in page and "1.0" in page


@pytest.fixture
def tiny_results_of_two(tmp_path: Path):
    from pipelines.results import ResultRow, RunResults

    rows = (ResultRow("TA", "merged", "task_arithmetic", "", "mmlu", "accuracy", 0.5, 0.1, 57),)
    results = RunResults(name="small", seed=0, rows=rows, merges=())
    return results, load(tmp_path, run_file(tmp_path)).published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": ["mmlu", "digits"]}, "no model answers both"),
        ({"benchmarks": ["mmul"]}, "no benchmark is called 'mmul'.*did you mean 'mmlu'"),
        ({"benchmarks": [{"name": "mmlu", "limt": 1}]}, "limt.*did you mean 'limit'"),
        ({"backend": "llama.cpp"}, "backend"),
    ],
)
def test_mistakes_are_found_when_the_file_is_read(tmp_path, change, message):
    content = run_file(tmp_path)
    content["evaluate"] |= change
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, content)


def test_coefficients_that_are_learned_from_images_are_refused_for_language_models(tmp_path):
    content = run_file(tmp_path)
    content["merges"][0]["adamerging"] = {"steps": 1}
    with pytest.raises(
        ConfigError, match=r"TA: AdaMerging learns from images .* leave `adamerging`"
    ):
        load(tmp_path, content)


def test_a_profile_named_twice_is_refused_before_anything_runs(tmp_path):
    from pipelines.preflight import check_run

    (tmp_path / "data").mkdir()
    content = run_file(tmp_path)
    content["evaluate"]["benchmarks"] = ["mmlu", {"name": "mmlu", "profile": "oc-ppl"}]
    with pytest.raises(ConfigError, match="mmlu/oc-ppl is named twice"):
        check_run(load(tmp_path, content))


def test_the_run_file_is_kept_as_it_was_written(tmp_path):
    text = load(tmp_path, run_file(tmp_path)).text()
    assert yaml.safe_load(text)["evaluate"]["benchmarks"][0] == "mmlu"
    assert json.dumps(yaml.safe_load(text)["evaluate"]["benchmarks"][1]["max_tokens"]) == "4"
