"""Table 2: the paper's run file is whole, and its small twin asks the same in the same form."""

from __future__ import annotations

from pathlib import Path

import pytest

from nan_merge.yaml_config import load_config
from pipelines.config import RunConfig
from pipelines.language_benchmarks import find_profile

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs/paper/table2_llama2_13b.yaml"
TWIN = ROOT / "configs/twins/table2_smollm2.yaml"


@pytest.mark.parametrize("path", [PAPER, TWIN])
def test_the_file_has_the_papers_rows_and_columns(path):
    config = load_config(path, RunConfig)
    merges = [merge.name for merge in config.merges]
    assert merges == ["Task Arithmetic (TA)", "TA + NAN", "Ties-Merging (Ties)", "Ties + NAN"]
    specs = config.evaluate.language_benchmarks
    assert [spec.name for spec in specs] == ["mmlu", "ceval", "gsm8k", "bbh"]
    for spec in specs:
        assert find_profile(spec.name, spec.profile).name == spec.profile
    models = [model.name for model in config.models]
    models += list(config.fine_tunes.models) if config.fine_tunes else []
    published = config.published
    assert published is not None
    assert list(published.scores) == ["WizardLM-13B", "WizardMath-13B", *merges]
    assert [published.model_of(row) for row in published.scores] == [*models, *merges]
    assert published.benchmarks == [spec.name for spec in specs]
    assert [*published.columns.values(), published.average_column] == [
        "MMLU",
        "CEval",
        "GSM8K",
        "BBH",
        "Avg",
    ]
    # What NAN adds, and nothing else: each pair is one method with both coefficients.
    by_name = {merge.name: merge for merge in config.merges}
    for row, baseline in published.differences:
        assert by_name[row].method == by_name[baseline].method
        assert by_name[row].coefficients.source == "nan"
        assert by_name[baseline].coefficients.source == "uniform"
    assert len(published.differences) == 2


def test_the_published_averages_are_those_of_the_published_scores():
    published = load_config(PAPER, RunConfig).published
    assert published is not None
    for row, printed in published.averages.items():
        scores = published.scores[row].values()
        assert sum(scores) / len(scores) == pytest.approx(printed, abs=0.0501)
    assert published.averages.keys() == published.scores.keys()


def test_the_paper_and_its_twin_ask_alike():
    paper, twin = (load_config(path, RunConfig) for path in (PAPER, TWIN))
    asked = [
        [(spec.name, spec.profile) for spec in config.evaluate.language_benchmarks]
        for config in (paper, twin)
    ]
    assert asked[0] == asked[1]
    recipes = [
        [(merge.method, merge.coefficients, merge.tokenizer) for merge in config.merges]
        for config in (paper, twin)
    ]
    assert recipes[0] == recipes[1]
    assert paper.published is not None and twin.published is not None
    assert paper.published.scores == twin.published.scores
    assert paper.published.averages == twin.published.averages


def test_models_of_the_paper_are_pinned():
    config = load_config(PAPER, RunConfig)
    for path in (config.base, *(model.path for model in config.models)):
        assert path is not None
        revision = path.partition("@")[2]
        assert len(revision) == 40 and int(revision, 16)
