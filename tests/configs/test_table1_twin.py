"""The twin of Table 1 on the quickstart's real tasks, all of its rows, with less training.

What is right is counted here from the stored predictions, and compared sample by sample.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from nan_merge.yaml_config import load_config
from pipelines.config import INDIVIDUAL, MULTITASK, PRETRAINED, RunConfig
from pipelines.results import RunResults, read_results
from pipelines.run_folder import folder_names
from tests.report_tables import assert_papers_table

ROOT = Path(__file__).parents[2]
TWIN = ROOT / "configs/twins/table1_quickstart.yaml"
NUM_SAMPLES = 500
AVERAGING = "Weight Averaging"
# A third of the training; AdaMerging moves as far in fewer steps.
LESS = [
    "experts.pretrain.steps=300",
    "experts.finetune.steps=60",
    "experts.multitask.steps=60",
    "statistics.num_examples=128",
    "merges.0.adamerging.steps=40",
    "merges.0.adamerging.learning_rate=0.0075",
    "merges.1.adamerging.steps=40",
    "merges.1.adamerging.learning_rate=0.0075",
    "track.mlflow=false",
]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("open_clip", "ray")),
        reason="needs open_clip and ray",
    ),
]


@dataclass(frozen=True)
class Twin:
    """The finished run."""

    folder: Path
    config: RunConfig
    results: RunResults

    def right(self, model: str) -> dict[tuple[str, str], bool]:
        """Task and sample -> whether the model's stored prediction is right."""
        folder = self.folder / "predictions" / folder_names(self.results.models())[model]
        return {
            (path.stem, line["sample_id"]): line["answer"] == line["target"]
            for path in folder.glob("*.jsonl")
            for line in map(json.loads, path.read_text().splitlines()[1:])
        }


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    folder = tmp_path_factory.mktemp("table1")
    changes = [f"run_folder={folder / 'run'}", f"cache={folder / 'cache'}", *LESS]
    command = [sys.executable, "-m", "pipelines.cli", "run", str(TWIN), *changes]
    subprocess.run(command, check=True, cwd=ROOT)
    config = load_config(TWIN, RunConfig, changes)
    return Twin(folder / "run", config, read_results(folder / "run"))


def test_all_rows_of_the_paper_are_scored_on_every_task(twin):
    assert twin.results.models() == list(map(twin.config.published.model_of,
                                             twin.config.published.scores))  # fmt: skip
    for model in twin.results.models():
        for task in twin.config.experts.tasks:
            row = twin.results.row(model, task)
            assert row is not None and row.num_samples == NUM_SAMPLES, (model, task)
        if model != INDIVIDUAL:
            right = twin.right(model)
            assert len(right) == NUM_SAMPLES * len(twin.config.experts.tasks)
            average = sum(right.values()) / len(right)
            assert twin.results.averages[model][0] == pytest.approx(average)


def test_the_order_of_the_papers_rows_holds_where_it_should(twin):
    """More training than none, and data for merging, are worth something; so says the paper."""
    averages = {model: average for model, (average, _) in twin.results.averages.items()}
    assert averages[PRETRAINED] < averages[AVERAGING] < averages[MULTITASK] < averages[INDIVIDUAL]
    averaged = twin.right(AVERAGING)
    for model in ("RegMean", "Layer-wise AdaMerging", "AdaMerging++"):
        right = twin.right(model)
        won = sum(right[sample] and not averaged[sample] for sample in right)
        lost = sum(averaged[sample] and not right[sample] for sample in right)
        assert won > lost, (model, won, lost)


def test_the_report_shows_the_papers_averages_beside_its_own(twin):
    assert_papers_table(twin.folder, twin.results, twin.config.published)
