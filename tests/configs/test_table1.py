"""Table 1: the paper's run files have its rows, its columns and its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.clip_sets import CLIP_SETS
from nan_merge.yaml_config import load_config
from pipelines.config import RunConfig
from pipelines.published import published_sheet
from pipelines.results import RunResults

ROOT = Path(__file__).parents[2] / "configs/paper"
ROWS = {
    "table1_vit_b32.yaml": [
        "Pretrained", "Individual", "Traditional MTL", "AdaMerging++", "Layer-wise AdaMerging",
        "Weight Averaging", "Fisher Merging", "RegMean", "Task Arithmetic (TA)", "TA + NAN",
        "Ties-Merging (Ties)", "Ties+NAN",
    ],
    "table1_vit_l14.yaml": [
        "Individual", "Traditional MTL", "Task Arithmetic", "Ties-Merging (Ties)", "Ties + NAN",
    ],
}  # fmt: skip
# Of the paper's own scores; elsewhere its averages are the means of their rows.
OTHER_MEANS = {
    ("table1_vit_b32.yaml", "Traditional MTL"): (88.9, 89.1),
    ("table1_vit_b32.yaml", "TA + NAN"): (70.7, 71.9),
    ("table1_vit_l14.yaml", "Traditional MTL"): (93.5, 93.1),
}


def load(name: str) -> RunConfig:
    return load_config(ROOT / name, RunConfig)


@pytest.mark.parametrize("name", ROWS)
def test_the_file_has_the_papers_rows_and_columns(name):
    config = load(name)
    published = config.published
    assert published is not None
    assert list(published.scores) == ROWS[name]
    assert published.benchmarks == list(CLIP_SETS) == list(config.evaluate.image_tasks)
    assert [model.name for model in config.models] == list(CLIP_SETS)
    # Every row but that of multi-task learning is made by the run.
    merges = [merge.name for merge in config.merges]
    made = {"Pretrained", "Individual", *merges}
    rows = [published.model_of(row) for row in published.scores]
    assert [row for row in rows if row not in made] == ["Traditional MTL"]
    assert set(merges) <= set(rows)


@pytest.mark.parametrize("name", ROWS)
def test_printed_averages_are_the_means_of_their_rows_but_for_three(name):
    published = load(name).published
    assert published is not None
    assert list(published.averages) == ROWS[name]
    for row, printed in published.averages.items():
        mean = sum(published.scores[row].values()) / 8
        if (name, row) in OTHER_MEANS:
            assert (printed, round(mean, 1)) == OTHER_MEANS[name, row]
        else:
            assert mean == pytest.approx(printed, abs=0.1)
    sheet = published_sheet(RunResults(name="none", seed=0, rows=(), merges=()), published)
    for (file, row), (printed, mean) in OTHER_MEANS.items():
        if file == name:
            assert f"{mean} in {row} (printed {printed})" in sheet.caption
    assert sheet.caption.count("(printed") == sum(file == name for file, _ in OTHER_MEANS)


@pytest.mark.parametrize("name", ROWS)
def test_differences_are_what_nan_adds(name):
    config = load(name)
    by_name = {merge.name: merge for merge in config.merges}
    published = config.published
    assert published is not None and published.differences
    for pair in published.differences:
        row, baseline = (by_name[published.model_of(each)] for each in pair)
        assert row.method == baseline.method
        assert (row.coefficients.source, baseline.coefficients.source) == ("nan", "uniform")


def test_the_backbones_are_openais_with_quickgelu():
    for name, model in (("b32", "ViT-B-32"), ("l14", "ViT-L-14")):
        assert load(f"table1_vit_{name}.yaml").clip == f"open_clip://{model}-quickgelu/openai"
