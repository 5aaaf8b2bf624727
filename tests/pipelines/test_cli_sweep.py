"""The commands sweep, track sync and push: what they pass on, what they refuse, their help."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner

from nan_merge.yaml_config import load_config
from pipelines.cli import app
from pipelines.config import RunConfig
from pipelines.sweep_points import PointMaker, grid_points

CONFIGS = Path(__file__).parents[2] / "configs"
SWEEP = """name: s
experts: {tasks: [digits, texture]}
evaluate: {benchmarks: [digits]}
sweep:
  merges:
    - name: TA
      method: task_arithmetic
      vary: {coefficients.lambda: {from: 0.1, to: 0.3, step: 0.1}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NAN_MERGE_DEBUG", raising=False)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_the_list_starts_nothing(folder: Path):
    result = invoke("sweep", "sweep.yaml", "--list")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "TA, lambda=0.1",
        "TA, lambda=0.2",
        "TA, lambda=0.3",
        "3 merges",
    ]
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]


def test_sweep_passes_the_checked_config(folder: Path, monkeypatch: pytest.MonkeyPatch):
    passed: list[RunConfig] = []
    module = ModuleType("pipelines.run")
    vars(module)["run_config"] = lambda config, **_: passed.append(config)
    monkeypatch.setitem(sys.modules, "pipelines.run", module)
    change = "sweep.search={name: random, points: 2}"
    result = invoke("sweep", "sweep.yaml", change, "seed=3", "--address", "auto")
    assert result.exit_code == 0, result.output
    (config,) = passed
    assert config.sweep is not None
    assert (config.sweep.search.points, config.seed, config.cluster.address) == (2, 3, "auto")
    assert RunConfig.model_validate(yaml.safe_load(config.text())) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sweep.merges=[]"], "found an empty list, expected a list of at least 1"),
        (["sweep.max_points=2"], "has 3 points, more than `sweep.max_points` (2)"),
        (["sweep=null"], "has no section `sweep`. docs/sweeps.md shows one"),
        (["sweep.keep=some"], "found 'some', expected 'all', 'best' or 'none'"),
        (["sweep.search.name=anneal"], "expected 'grid', 'random' or 'optuna'"),
        (["sweep.merges.0.vary={method.dens: [1]}"], "method.dens: unknown key"),
        (["sweep.merges.0.vary={coefficients.lambda: {from: 1}}"], "to: is missing"),
        (["sweep.merges.0.vary={coefficients.lambda: []}"], "no values for coefficients.lambda"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(folder: Path, changes: list[str], message: str):
    result = invoke("sweep", "sweep.yaml", *changes, "--list")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "internal error" not in result.stderr


def test_sync_says_when_nothing_waits(folder: Path):
    result = invoke("track", "sync")
    assert (result.exit_code, result.stdout) == (0, "Nothing waits below runs/.\n")


def test_sync_names_a_folder_that_is_not_there(folder: Path):
    result = invoke("track", "sync", "runs/quickstrat")
    assert result.exit_code == 2
    assert "There is no folder runs/quickstrat." in result.stderr


def test_the_list_refuses_an_objective_that_is_not_measured(folder: Path):
    result = invoke("sweep", "sweep.yaml", "sweep.objective=nope", "--list")
    assert result.exit_code == 2
    assert "sweep.objective: 'nope' is not measured" in result.stderr


def test_push_names_what_is_no_merge(folder: Path):
    result = invoke("push", ".", "s3://bucket/x")
    assert result.exit_code == 2
    assert ". holds no whole merge" in result.stderr


@pytest.mark.parametrize("command", [["sweep"], ["track", "sync"], ["push"]])
def test_help_shows_examples(folder: Path, command: list[str]):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert f"nan-merge {' '.join(command)} " in result.stdout.partition("Examples:")[2]


def test_the_quickstarts_sweep_is_of_its_models():
    sweep = load_config(CONFIGS / "sweeps" / "quickstart.yaml", RunConfig)
    quickstart = load_config(CONFIGS / "quickstart.yaml", RunConfig)
    assert (sweep.experts, sweep.seed) == (quickstart.experts, quickstart.seed)
    assert sweep.sweep is not None
    assert len(grid_points(PointMaker(sweep, sweep.sweep))) == 24
