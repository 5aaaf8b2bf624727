"""A run whose merges need data: statistics are gathered, coefficients learned, once."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
from pydantic import ValidationError

from nan_merge.data_statistics import open_data_statistics
from nan_merge.errors import ConfigError
from nan_merge.manifest import read_manifest
from nan_merge.yaml_config import load_config
from pipelines.config import MULTITASK, RunConfig
from pipelines.data_statistics import needed_statistics
from pipelines.results import read_results
from pipelines.run_folder import slug
from tests.pipelines.test_run import TASKS, miniature, run

ROOT = Path(__file__).parents[2]
TIES = {"name": "ties", "disjoint": "sum", "order": "after", "density": 0.2}
LEARNED = {"steps": 3, "images_per_task": 4, "learning_rate": 0.05}
MERGES = (
    {"name": "Fisher", "method": "fisher"},
    {"name": "RegMean", "method": "regmean"},
    {"name": "RegMean + NAN", "method": "regmean", "coefficients": "nan"},
    {"name": "Ada", "method": "task_arithmetic", "coefficients": "nan", "adamerging": LEARNED},
    {
        "name": "Ada on TIES",
        "method": TIES,
        "coefficients": {"lambda": 0.3},
        "adamerging": LEARNED | {"scope": "model"},
    },
)


def config_of(folder: Path) -> RunConfig:
    config = miniature(
        folder,
        name="with-data",
        merges=MERGES,
        statistics={"num_examples": 12, "batch_size": 6},
        track={"mlflow": False},
        experts={
            "tasks": TASKS,
            "text": {"steps": 5},
            "pretrain": {"steps": 10},
            "finetune": {"steps": 10},
            "multitask": {"steps": 5, "images_per_task": 8},
        },
    )
    return config


@pytest.fixture(scope="module")
def first(tmp_path_factory, miniature_cache: Path) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("with-data")
    # What other runs may have prepared and pretrained, but none of their fine-tunes.
    for there in (*miniature_cache.glob("data"), *miniature_cache.glob("experts-*/clip")):
        copytree(there, folder / "cache" / there.relative_to(miniature_cache))
    return folder, run(config_of(folder))


def manifest_of(folder: Path, name: str):
    return read_manifest(folder / "run" / "checkpoints" / slug(name) / "merge_manifest.json")


@pytest.mark.ray
def test_every_row_is_there(first):
    folder, output = first
    results = read_results(folder / "run")
    names = [str(merge["name"]) for merge in MERGES]
    assert results.models() == ["Pretrained", "Individual", MULTITASK, *names]
    assert {row.kind for row in results.rows if row.model == MULTITASK} == {"multitask"}
    assert all(results.row(name, task) for name in results.models() for task in TASKS)
    assert "Gathering Fisher diagonals" in output and "Gathering Gram matrices" in output
    assert "Learning coefficients" in output
    assert f"Fine-tuning {len(TASKS)} models and one on all tasks" in output
    assert MULTITASK in (folder / "run" / "report.html").read_text()


@pytest.mark.ray
def test_statistics_are_of_the_models_that_were_merged(first):
    folder, _ = first
    for name, kind in (("Fisher", "fisher"), ("RegMean", "gram")):
        for model in manifest_of(folder, name)["recipe"]["models"]:
            found = open_data_statistics(model["statistics"], model["name"])
            assert (found.kind, found.facts["task"]) == (kind, model["name"])
            assert found.facts["num_examples"] == 12
    plain, weighed = (manifest_of(folder, name) for name in ("RegMean", "RegMean + NAN"))
    assert plain["recipe"]["models"] == weighed["recipe"]["models"]
    assert sum(weighed["coefficients"].values()) == pytest.approx(1)


@pytest.mark.ray
def test_coefficients_that_were_learned_are_those_of_the_merge(first):
    folder, _ = first
    by_tensor, whole = manifest_of(folder, "Ada"), manifest_of(folder, "Ada on TIES")
    assert (by_tensor["scope"], whole["scope"]) == ("tensor", "model")
    assert by_tensor["recipe"]["coefficients"]["source"] == "table"
    for rows in by_tensor["coefficients"].values():
        # It began at NAN's 0.5, for two models, and made three steps of about 0.05.
        assert all(0.34 < value < 0.66 for value in rows.values())
        assert len(set(rows.values())) > 3
    assert all(0.14 < value < 0.46 for value in whole["coefficients"].values())
    assert any(abs(value - 0.3) > 0.01 for value in whole["coefficients"].values())


@pytest.mark.ray
def test_once_more_nothing_is_gathered_learned_or_trained(first):
    folder, _ = first
    before = (folder / "run" / "results.json").read_bytes()
    output = run(config_of(folder))
    for stage in ("Gathering", "Learning", "Training on all tasks", "Fine-tuning", "Merging"):
        assert stage not in output
    assert (folder / "run" / "results.json").read_bytes() == before


@pytest.mark.ray
def test_a_sweep_gathers_once_for_all_of_its_points(tmp_path, first):
    folder, _ = first
    entry = {"method": "regmean", "vary": {"method.off_diagonal": [0.5, 0.8]}}
    content = config_of(folder).model_dump(mode="json", by_alias=True, exclude_unset=True)
    content |= {"merges": [], "sweep": {"merges": [entry], "keep": "all"}}
    content |= {"run_folder": str(tmp_path / "sweep"), "name": "swept"}
    content["statistics"]["num_examples"] = 10  # not what the run before has gathered
    output = run(RunConfig.model_validate(content))
    assert output.count("Gathering Gram matrices") >= 1 and "Fine-tuning" not in output
    manifests = sorted((tmp_path / "sweep" / "checkpoints").glob("*/merge_manifest.json"))
    recipes = [read_manifest(path)["recipe"] for path in manifests]
    assert [each["method"]["off_diagonal"] for each in recipes] == [0.5, 0.8]
    for model, other in zip(recipes[0]["models"], recipes[1]["models"], strict=True):
        assert model["statistics"] == other["statistics"]
        found = open_data_statistics(model["statistics"], model["name"])
        assert (found.kind, found.facts["num_examples"]) == ("gram", 10)


def test_adamerging_over_a_method_that_is_not_linear_is_refused(tmp_path):
    for method in ("ties", "average", "regmean", {**TIES, "order": "before"}):
        merges = [{"name": "Ada", "method": method, "adamerging": {}}]
        with pytest.raises(ValidationError, match="AdaMerging learns factors on what a method"):
            miniature(tmp_path, merges=merges)


def test_only_models_that_are_merged_get_statistics(tmp_path):
    merges = [
        {"name": "A", "method": "average"},
        {"name": "B", "method": "regmean", "models": ["texture"]},
        {"name": "C", "method": "fisher"},
    ]
    config = miniature(tmp_path, merges=merges)
    assert needed_statistics(config) == {"gram": ["texture"], "fisher": list(TASKS)}
    sweep = {"merges": [{"method": "regmean", "vary": {"method.off_diagonal": [0.5, 0.9]}}]}
    assert needed_statistics(miniature(tmp_path, merges=(), sweep=sweep)) == {"gram": list(TASKS)}


@pytest.mark.parametrize(
    ("entry", "needed"),
    [
        ({"method": "regmean", "models": ["texture"]}, {"gram": ["texture"]}),
        ({"method": "ties", "vary": {"method": ["average", "fisher"]}}, {"fisher": list(TASKS)}),
        (
            {"vary": {"method": [{"name": "regmean", "off_diagonal": 0.5}, "ties"]}},
            {"gram": list(TASKS)},
        ),
        (
            {"method": "regmean", "vary": {"models": [["texture"], ["texture", "digits"]]}},
            {"gram": ["texture", "digits"]},
        ),
        ({"method": "ties", "vary": {"method.density": {"from": 0.1, "to": 0.9, "steps": 2}}}, {}),
    ],
)
def test_a_sweep_asks_for_what_some_point_of_it_reads(tmp_path, entry, needed):
    config = miniature(tmp_path, merges=(), sweep={"merges": [entry]})
    assert needed_statistics(config) == needed


def test_language_models_without_texts_are_named(tmp_path):
    from pipelines.data_statistics import _texts_of

    content = {
        "name": "texts",
        "base": "base",
        "models": ["a", "b"],
        "merges": [{"name": "RegMean", "method": "regmean"}],
        "evaluate": {"benchmarks": ["mmlu"]},
        "statistics": {"texts": {"a": str(tmp_path / "a.jsonl")}},
    }
    config = RunConfig.model_validate(content)
    (tmp_path / "a.jsonl").write_text('"some text"\n')
    assert [each.answer for each in _texts_of(config, "a").texts] == ["some text"]
    with pytest.raises(ConfigError, match=r"Set `statistics\.texts\.b` to a JSON Lines file"):
        _texts_of(config, "b")


def test_the_twin_of_table_1_has_all_of_its_rows():
    config = load_config(ROOT / "configs/twins/table1_quickstart.yaml", RunConfig)
    assert config.experts is not None and config.experts.multitask is not None
    assert [merge.name for merge in config.merges] == [
        "AdaMerging++",
        "Layer-wise AdaMerging",
        "Weight Averaging",
        "Fisher Merging",
        "RegMean",
        "Task Arithmetic (TA)",
        "TA + NAN",
        "Ties-Merging (Ties)",
        "Ties + NAN",
    ]
    quickstart = load_config(ROOT / "configs/quickstart.yaml", RunConfig)
    assert quickstart.experts is not None
    for part in ("tasks", "text", "pretrain", "finetune"):  # so that models are found in the cache
        assert getattr(config.experts, part) == getattr(quickstart.experts, part)
