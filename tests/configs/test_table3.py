"""Table 3: the paper's run file is whole, and holds the paper's numbers."""

from pathlib import Path

import pytest

from evaluators.training.drawn_questions import write_drawn_benchmarks
from nan_merge.errors import ConfigError
from nan_merge.yaml_config import load_config
from pipelines.config import PRETRAINED, RunConfig
from pipelines.language_benchmarks import find_profile

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs/paper/table3_llava_13b.yaml"
TWIN = ROOT / "configs/twins/table3_llava_mini.yaml"


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


def test_the_twin_asks_as_the_paper_does_and_shows_the_same_numbers():
    paper, twin = (load_config(path, RunConfig) for path in (PAPER, TWIN))
    asked = [
        [(spec.name, spec.profile) for spec in each.evaluate.language_benchmarks]
        for each in (paper, twin)
    ]
    assert asked[0] == asked[1]
    assert paper.published is not None and twin.published is not None
    assert paper.published.scores == twin.published.scores
    merges = [[(one.method, one.coefficients) for one in each.merges] for each in (paper, twin)]
    assert merges[0] == merges[1]


def test_drawn_questions_are_read_by_the_benchmarks_own_readers(tmp_path):
    write_drawn_benchmarks(tmp_path, 6, seed=0)
    write_drawn_benchmarks(tmp_path / "other", 6, seed=1)
    for name, size in (("mathvista", 6), ("wemath", 18), ("ai2d", 6), ("geoqa", 6)):
        profile = find_profile(name, None)
        samples = profile.samples(tmp_path / name)
        assert len(samples) == size
        pictures = {each.images[0].digest for each in samples}
        others = {e.images[0].digest for e in profile.samples(tmp_path / "other" / name)}
        assert pictures.isdisjoint(others)


def test_recipes_must_fit_the_base_that_they_start_from():
    with pytest.raises(ConfigError, match=r"llava-mini is trained by `skills`"):
        load_config(TWIN, RunConfig, ["fine_tunes.models.placing={exercises: counting}"])
