"""What travels with a run that is sent, and where its paths lead there: no cluster."""

from pathlib import Path

import pytest
import yaml

from nan_merge.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.submit import place_paths, write_bundle
from tests.submitted_runs import RUN, config, own_models


def test_relative_paths_are_refused_all_at_once():
    run = own_models(base="./base", models=["../a", "org/b", "/data/c", "./d+org/adapter"])
    with pytest.raises(ConfigError) as caught:
        place_paths(run, None)
    lines = [line[4:] for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "run_folder: runs/tiny",
        "cache: runs/cache",
        "base: ./base",
        "models.0: ../a",
        "models.3: ./d+org/adapter",
    ]
    assert "--storage DIR" in str(caught.value)


def test_relative_paths_are_taken_from_the_storage_and_others_stay():
    models = ["m/a/one", "org/b", "/data/c", "./d+org/adapter", "s3://x/y"]
    run = own_models(base="./base", models=models)
    placed = place_paths(run, "/shared/me")
    assert placed.base == "/shared/me/base"
    assert [model.path for model in placed.models] == [
        "/shared/me/m/a/one",
        "org/b",
        "/data/c",
        "/shared/me/d+org/adapter",
        "s3://x/y",
    ]
    assert [model.name for model in placed.models] == [model.name for model in run.models]
    assert str(placed.folder) == "/shared/me/runs/tiny"
    assert str(placed.cache) == "/shared/me/runs/cache"


def test_the_data_of_image_sets_and_a_clip_by_name():
    run = own_models(clip="open_clip://ViT-B-32-quickgelu/openai", models=["org/b"], base=None)
    changed = run.model_dump(mode="json", exclude_unset=True)
    changed["evaluate"] = {"benchmarks": ["SUN397"], "data": "data"}
    run = RunConfig.model_validate(changed)
    with pytest.raises(ConfigError, match=r"evaluate\.data: data"):
        place_paths(run, None)
    placed = place_paths(run, "/shared")
    assert placed.clip == "open_clip://ViT-B-32-quickgelu/openai"
    assert str(placed.evaluate.data) == "/shared/data"
    assert placed.evaluate.benchmarks == ("SUN397",)


@pytest.mark.parametrize(
    ("uri", "there"),
    [
        ("sqlite:///mine.db", "sqlite:////shared/mine.db"),
        ("sqlite:////data/mine.db", "sqlite:////data/mine.db"),
        ("./mlruns", "/shared/mlruns"),
        ("file:./mlruns", "file:/shared/mlruns"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("databricks", "databricks"),
    ],
)
def test_a_store_of_mlflow_in_a_file_is_a_path_like_others(uri: str, there: str):
    run = config(run_folder="/r", cache="/c", track={"uri": uri})
    placed = place_paths(run, "/shared")
    assert placed.track.uri == there
    if uri == there:
        assert place_paths(run, None).track.uri == uri
    else:
        with pytest.raises(ConfigError, match=f"track.uri: {uri}"):
            place_paths(run, None)


LANGUAGE = {
    "clip": None,
    "evaluate": {
        "benchmarks": [
            "mmlu",
            "own/capitals.yaml",
            {"name": "gsm8k", "data": "elsewhere"},
            {"name": "/whole/own.yaml"},
        ],
        "data": "data",
    },
}


def test_data_and_benchmarks_of_ones_own_are_paths_like_others():
    run = own_models(**LANGUAGE, run_folder="/r", cache="/c")
    with pytest.raises(ConfigError) as caught:
        place_paths(run, None)
    lines = [line[4:] for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "evaluate.data: data",
        "evaluate.benchmarks.1: own/capitals.yaml",
        "evaluate.benchmarks.2.data: elsewhere",
    ]
    placed = place_paths(run, "/shared")
    assert str(placed.evaluate.data) == "/shared/data"
    first, own, gsm8k, other = placed.evaluate.language_benchmarks
    assert (first.name, first.data) == ("mmlu", None)
    assert own.name == "/shared/own/capitals.yaml"
    assert (gsm8k.name, str(gsm8k.data)) == ("gsm8k", "/shared/elsewhere")
    assert other.name == "/whole/own.yaml"
    assert place_paths(placed, None) == placed


def test_a_sent_run_over_language_models_is_read_as_it_was(tmp_path: Path):
    placed = place_paths(own_models(**LANGUAGE), "/shared")
    write_bundle(placed, tmp_path)
    sent = RunConfig.model_validate(yaml.safe_load((tmp_path / "run.yaml").read_text()))
    assert sent.evaluate == placed.evaluate


def test_models_that_merges_name_and_do_not_merge_are_paths_like_others(tmp_path: Path):
    merge = {
        "name": "m",
        "method": "average",
        "config": {"path": "./llava-hub"},
        "modules": {"vision_tower": {"path": "./clip"}, "projector": "a"},
    }
    hub = {"name": "h", "method": "average", "config": {"path": "org/hub"}}
    run = own_models(**LANGUAGE | {"merges": [merge, hub]}, run_folder="/r", cache="/c")
    with pytest.raises(ConfigError) as caught:
        place_paths(run, None)
    lines = [line[4:] for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines[:2] == [
        "merges.0.modules.vision_tower: ./clip",
        "merges.0.config: ./llava-hub",
    ]
    placed = place_paths(run, "/shared")
    write_bundle(placed, tmp_path)
    sent = RunConfig.model_validate(yaml.safe_load((tmp_path / "run.yaml").read_text()))
    assert sent.merges == placed.merges
    one, other = sent.merges
    assert one.model_dump()["config"] == {"path": "/shared/llava-hub"}
    assert one.model_dump()["modules"] == {
        "vision_tower": {"path": "/shared/clip"},
        "projector": "a",
    }
    assert other.model_dump()["config"] == {"path": "org/hub"}


def test_models_that_a_sweep_names_and_does_not_merge_are_paths_like_others(tmp_path: Path):
    swept = {"method": "average", "modules": {"vision_tower": {"path": "./clip"}}}
    run = own_models(sweep={"merges": [swept]}, run_folder="/r", cache="/c", base="/b")
    with pytest.raises(ConfigError, match=r"- sweep\.merges\.0\.modules\.vision_tower: \./clip"):
        place_paths(run, None)
    placed = place_paths(run, "/shared")
    write_bundle(placed, tmp_path)
    sent = RunConfig.model_validate(yaml.safe_load((tmp_path / "run.yaml").read_text()))
    assert sent.sweep == placed.sweep and sent.sweep is not None
    modules = sent.sweep.merges[0].model_dump()["modules"]
    assert modules == {"vision_tower": {"path": "/shared/clip"}}


TABLE = {"source": "table", "table": "own/table.json"}
SWEEP = {
    "merges": [
        {"method": "ties", "vary": {"method.density": {"from": 0.1, "to": 0.9, "steps": 3}}},
        {"name": "TA", "method": "task_arithmetic", "coefficients": TABLE,
         "vary": {"coefficients.lambda": [0.3, 1.0]}},
    ],
    "search": {"name": "random", "points": 4},
    "keep": "none",
}  # fmt: skip


def test_a_sent_sweep_is_read_as_it_was(tmp_path: Path):
    run = config(merges=[], sweep=SWEEP)
    placed = place_paths(run, "/shared")
    write_bundle(placed, tmp_path)
    sent = RunConfig.model_validate(yaml.safe_load((tmp_path / "run.yaml").read_text()))
    assert sent.sweep == placed.sweep
    assert sent.sweep is not None and run.sweep is not None
    assert sent.sweep.merges[0] == run.sweep.merges[0]
    assert sent.sweep.merges[1].coefficients.table == "/shared/own/table.json"  # type: ignore[union-attr]


def test_what_merges_read_besides_models_are_paths_like_others():
    run = own_models(
        models=[{"path": "org/a", "statistics": "kept/a"}, "org/b"],
        merges=[{"name": "T", "method": "task_arithmetic", "coefficients": TABLE}],
        statistics={"texts": {"a": "texts/a.jsonl"}},
        sweep=SWEEP,
        run_folder="/r",
        cache="/c",
    )
    with pytest.raises(ConfigError) as caught:
        place_paths(run, None)
    lines = [line[4:] for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "models.0.statistics: kept/a",
        "statistics.texts.a: texts/a.jsonl",
        "merges.0.coefficients.table: own/table.json",
        "sweep.merges.1.coefficients.table: own/table.json",
    ]
    placed = place_paths(run, "/shared")
    assert placed.models[0].statistics == "/shared/kept/a"
    assert str(placed.statistics.texts["a"]) == "/shared/texts/a.jsonl"
    assert placed.merges[0].coefficients.table == "/shared/own/table.json"
    assert place_paths(placed, None) == placed


def test_a_folder_here_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    placed = place_paths(own_models(base="runs/mine"), "/shared")
    assert placed.base == "/shared/runs/mine"


def test_a_storage_that_is_relative_is_refused():
    with pytest.raises(ConfigError, match=r"--storage shared is relative, .*--storage /shared/me"):
        place_paths(config(), "shared")


def test_only_the_run_file_travels(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    (tmp_path / "own.json").write_text("{}")
    run = config(experts={**RUN["experts"], "backbone": "./own.json"}, seed=3)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_bundle(place_paths(run, "/shared"), bundle)
    assert sorted(path.name for path in bundle.rglob("*")) == ["own.json", "run.yaml"]
    sent = RunConfig.model_validate(yaml.safe_load((bundle / "run.yaml").read_text()))
    assert sent.seed == 3
    assert sent.experts is not None
    assert sent.experts.backbone == "own.json"
    assert str(sent.folder) == "/shared/runs/tiny"


def test_a_model_configuration_that_is_not_there_is_told(tmp_path: Path):
    run = config(experts={**RUN["experts"], "backbone": "gone.json"})
    with pytest.raises(ConfigError, match=r"experts\.backbone: there is no file gone\.json"):
        write_bundle(run, tmp_path)
