"""Table 3: the paper's run file is whole, and holds the paper's numbers."""

from pathlib import Path

import pytest

from nan_merge.yaml_config import load_config
from pipelines.config import PRETRAINED, RunConfig
from pipelines.language_benchmarks import find_profile

PAPER = Path(__file__).parents[2] / "configs/paper/table3_llava_13b.yaml"


def test_the_file_has_the_papers_rows_and_columns():
    config = load_config(PAPER, RunConfig)
    specs = config.evaluate.language_benchmarks
    assert [spec.name for spec in specs] == ["mathvista", "wemath", "ai2d", "geoqa"]
    for spec in specs:
        assert find_profile(spec.name, spec.profile).name == spec.profile
    published = config.published
    assert published is not None
    assert published.benchmarks == [spec.name for spec in specs]
    merges = [merge.name for merge in config.merges]
    rows = [published.model_of(row) for row in published.scores]
    assert rows == [PRETRAINED, *(model.name for model in config.models), *merges]
    one, other = config.merges
    assert (one.method, one.modules, one.missing) == (other.method, other.modules, other.missing)
    assert (one.coefficients.source, other.coefficients.source) == ("uniform", "nan")


def test_the_published_averages_are_those_of_the_published_scores():
    published = load_config(PAPER, RunConfig).published
    assert published is not None
    for row, printed in published.averages.items():
        assert sum(published.scores[row].values()) / 4 == pytest.approx(printed, abs=0.0501)
    # The base has two of the four numbers, and so no average.
    assert list(published.scores["LLaVA-v1.5-13B"]) == ["mathvista", "ai2d"]
    assert "LLaVA-v1.5-13B" not in published.averages
