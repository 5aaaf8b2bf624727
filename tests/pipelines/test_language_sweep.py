"""A sweep over language models: asked once, divided by clusters, gone on with after a change."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from evaluators.torchvision_repair import repair
from pipelines.config import RunConfig
from pipelines.results import read_results
from pipelines.run import run_config
from tests.benchmark_folders import write_mmlu
from tests.language_checkpoints import make_tiny_llama

repair()
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("ray")


def config_of(folder: Path, lambdas: list[float]) -> RunConfig:
    entry = {"method": "task_arithmetic", "vary": {"coefficients.lambda": lambdas}}
    return RunConfig.model_validate(
        {
            "name": "small",
            "run_folder": folder / "run",
            "base": str(folder / "base"),
            "models": [{"path": str(folder / name), "name": name} for name in ("math", "chat")],
            "sweep": {"merges": [entry], "dev_share": 0.5, "objective": "mmlu"},
            "evaluate": {
                "benchmarks": ["mmlu"],
                "backend": {"name": "transformers", "dtype": "float32", "device": "cpu"},
                "data": folder / "data",
            },
            "track": {"mlflow": False},
        }
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_language_models_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    for seed, name in enumerate(("base", "math", "chat")):
        make_tiny_llama(tmp_path / name, seed=seed)
    write_mmlu(tmp_path / "data" / "mmlu", 1)
    console = Console(width=120, record=True, file=(tmp_path / "log").open("w"))
    run_config(config_of(tmp_path, [0.5, 1.0]), console=console)
    results = read_results(tmp_path / "run")
    assert results.models() == [
        "Pretrained",
        "math",
        "chat",
        "task_arithmetic, lambda=0.5",
        "task_arithmetic, lambda=1",
    ]
    counts = {row.num_samples for row in results.rows}
    assert len(counts) == 1 and 10 < min(counts) < 47  # of 57, the others are dev
    kept = [*(tmp_path / "run" / "checkpoints").glob("*/config.json")]
    assert len(kept) == 1
    again = Console(width=120, record=True, file=(tmp_path / "log2").open("w"))
    run_config(config_of(tmp_path, [0.5, 1.0, 2.0]), console=again)
    text = again.export_text()
    assert "2 of 3 merges were scored before." in text
    assert "Asking 1 model ..." in text
    after = read_results(tmp_path / "run")
    assert len(after.sweep) == 3
    for name, point in results.sweep.items():
        assert after.sweep[name].dev == point.dev
        assert after.average(name) == results.average(name)
