"""The whole story on a miniature: train, merge, evaluate, record, report; then all over again."""

import fcntl
import json
import os
import sqlite3
from io import StringIO
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from nan_merge.errors import ConfigError, MissingExtraError, OutputError
from pipelines.config import RunConfig
from pipelines.masking import hide_passwords
from pipelines.preflight import check_run
from pipelines.results import read_results
from pipelines.run import RunModels, list_candidates, run_config
from pipelines.run_folder import folder_names, refuse_other_run, sole_writer
from pipelines.status import read_status
from pipelines.tracking import how_to_look

TASKS = ("digits", "texture")
MERGES = (
    {"name": "Average", "method": "average"},
    {"name": "TA", "method": "task_arithmetic", "coefficients": {"lambda": 0.3}},
    {"name": "TA + NAN", "method": "task_arithmetic", "coefficients": "nan"},
    {"name": "TIES + NAN", "method": "ties", "coefficients": {"source": "nan", "scale": "norm"}},
)


def miniature(folder: Path, **changes: object) -> RunConfig:
    content = {
        "name": "miniature",
        "run_folder": folder / "run",
        "cache": folder / "cache",
        "experts": {
            "tasks": TASKS,
            "text": {"steps": 5},
            "pretrain": {"steps": 10},
            "finetune": {"steps": 10},
        },
        "merges": MERGES,
        "evaluate": {"benchmarks": TASKS},
        "cluster": {"num_workers": 2},
    }
    return RunConfig.model_validate(content | changes)


def run(config: RunConfig, **options: int) -> str:
    console = Console(file=StringIO(), width=120)
    run_config(config, console=console, **options)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, miniature_cache: Path) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("story")
    (folder / "cache").symlink_to(miniature_cache)
    os.environ["NAN_MERGE_CACHE"] = str(folder / "hashes")
    return folder, run(miniature(folder))


def test_the_table_and_the_files_are_there(first_run: tuple[Path, str]):
    folder, output = first_run
    for model in ("Pretrained", "Individual", *(str(merge["name"]) for merge in MERGES)):
        assert model in output
    rows = json.loads((folder / "run" / "results.json").read_text())
    assert len(rows) == (2 + len(MERGES)) * len(TASKS)
    for row in rows:
        assert 0 <= row["value"] <= 1
        assert 0 < row["standard_error"] < 0.2
        assert row["num_samples"] == 500
    report = (folder / "run" / "report.html").read_text()
    assert "TIES + NAN" in report
    assert "<svg" in report


def test_the_folder_tells_that_the_run_is_done(first_run: tuple[Path, str]):
    folder, _ = first_run
    status = read_status(folder / "run")
    assert (status.state, status.error) == ("done", "")
    assert {stage.state for stage in status.stages} == {"done"}
    stages = {stage.name: (stage.done, stage.total) for stage in status.stages}
    assert stages["Merging 4 checkpoints"] == (1, 1)
    assert stages["Counting magnitudes"] == (1, 1)
    assert {merge.state for merge in status.merges} == {"done"}
    assert len(status.merges) == len(MERGES)
    assert not list((folder / "run").glob(".*"))  # neither an owner nor reports of tasks


def test_scores_are_the_share_of_right_predictions(first_run: tuple[Path, str]):
    folder, _ = first_run
    results = read_results(folder / "run")
    for merge, name in (("TA + NAN", "ta-nan"), ("Average", "average")):
        path = folder / "run" / "predictions" / name / "digits.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        right = sum(line["answer"] == line["target"] for line in lines)
        row = results.row(merge, "digits")
        assert row is not None
        assert row.value == right / 500


def test_errors_are_over_sources_and_differences_are_paired(first_run: tuple[Path, str]):
    folder, output = first_run
    results = read_results(folder / "run")
    names = [str(merge["name"]) for merge in MERGES]
    assert set(results.averages) == {"Pretrained", "Individual", *names}
    assert set(results.differences) == {name for name in names if name != "TA"}
    for name, (value, error) in results.differences.items():
        assert value == pytest.approx(results.averages[name][0] - results.averages["TA"][0])
        assert error >= 0
    path = folder / "run" / "predictions" / "ta" / "texture.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len({line["cluster_id"] for line in lines}) == 28
    assert "over the test set's sources" in " ".join(output.split())
    assert list((folder / "cache" / "heads").rglob("*.safetensors"))


def test_coefficients_of_nan_sum_to_half_the_number_of_models(first_run: tuple[Path, str]):
    folder, _ = first_run
    summary = next(merge for merge in read_results(folder / "run").merges if "NAN" in merge.model)
    assert sum(summary.coefficients.values()) == pytest.approx(1.0, abs=1e-6)
    assert summary.norm_target == "weights"
    assert set(summary.norms) == set(TASKS)


def test_mlflow_holds_a_parent_a_child_per_model_and_a_grandchild_per_benchmark(
    first_run: tuple[Path, str],
):
    folder, _ = first_run
    database = sqlite3.connect(folder / "run" / "mlflow.db")
    (num_runs,) = database.execute("SELECT COUNT(*) FROM runs").fetchone()
    children = "SELECT COUNT(*) FROM tags WHERE key = 'mlflow.parentRunId'"
    (num_children,) = database.execute(children).fetchone()
    # The run, six models, and two benchmarks of each.
    assert (num_runs, num_children) == (1 + 6 + 12, 6 + 12)


def test_a_second_run_computes_nothing_and_says_the_same(
    first_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
):
    folder, output = first_run

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started although nothing is left to do")

    monkeypatch.setattr("cluster.session.ray_session", refuse)
    before = (folder / "run" / "results.json").read_bytes()
    again = run(miniature(folder))
    table = [line for line in output.splitlines() if "±" in line]
    assert [line for line in again.splitlines() if "±" in line] == table
    assert (folder / "run" / "results.json").read_bytes() == before


def test_the_run_file_is_kept_as_it_was_run(first_run: tuple[Path, str]):
    folder, output = first_run
    kept = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert RunConfig.model_validate(kept) == miniature(folder)
    assert read_results(folder / "run").config_yaml == (folder / "run" / "config.yaml").read_text()
    assert "note: TA + NAN: The coefficients lie within 1 % of each other" in output


def test_damaged_norms_are_taken_anew(first_run: tuple[Path, str]):
    folder, _ = first_run
    path = folder / "run" / "norms.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    run(miniature(folder))
    assert path.read_text() == whole


def test_a_changed_merge_is_made_anew_and_nothing_else(first_run: tuple[Path, str]):
    folder, _ = first_run
    checkpoints = folder / "run" / "checkpoints"
    before = {
        path.parent.name: path.stat().st_mtime_ns
        for path in checkpoints.glob("*/model.safetensors")
    }
    changed = dict(MERGES[1]) | {"coefficients": {"lambda": 0.4}}
    run(miniature(folder, merges=(MERGES[0], changed, *MERGES[2:])))
    after = {
        path.parent.name: path.stat().st_mtime_ns
        for path in checkpoints.glob("*/model.safetensors")
    }
    assert {name for name in after if after[name] != before[name]} == {"ta"}


def test_ones_own_models_take_the_same_way_under_names_of_their_own(
    first_run: tuple[Path, str],
):
    folder, _ = first_run
    (experts,) = (folder / "cache").glob("experts-*")
    config = miniature(
        folder,
        run_folder=folder / "own",
        experts=None,
        base=str(experts / "clip" / "image_tower"),
        clip=str(experts / "clip"),
        models=[{"path": str(experts / task), "name": f"模型-{task}"} for task in TASKS],
        merges=({**MERGES[0], "name": "平均"}, MERGES[2]),
        track={"mlflow": False},
    )
    output = run(config)
    trained, own = read_results(folder / "run"), read_results(folder / "own")
    assert own.average("平均") == trained.average("Average")
    assert own.average("TA + NAN") == trained.average("TA + NAN")
    assert not (folder / "own" / "mlflow.db").exists()
    assert "note: there is no row Individual, because" in output
    assert own.models() == ["Pretrained", "平均", "TA + NAN"]
    assert (folder / "own" / "checkpoints" / "平均").is_dir()
    assert (folder / "own" / "predictions" / "模型-digits").is_dir()


def test_a_path_from_home_is_resolved_for_the_evaluation(
    first_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
):
    folder, _ = first_run
    (experts,) = (folder / "cache").glob("experts-*")
    monkeypatch.setenv("HOME", str(folder))
    home = Path("~") / experts.relative_to(folder)
    own = {
        "base": str(home / "clip" / "image_tower"),
        "clip": "~",
        "models": [str(home / "digits")],
    }
    config = miniature(folder, experts=None, merges=(), **own)
    assert config.base is not None
    models = RunModels(config.base, config.models, folder, {})
    found = [candidate.folder for candidate in list_candidates(config, models, [])]
    assert found == [experts / "clip" / "image_tower", experts / "digits"]


def test_another_seed_does_not_write_over_a_run(first_run: tuple[Path, str]):
    folder, _ = first_run
    before = (folder / "run" / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"with seed 0; .* seed 1 .*`run_folder=.*-seed1`"):
        run(miniature(folder, seed=1))
    assert (folder / "run" / "config.yaml").read_bytes() == before


def test_each_seed_keeps_its_own_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    configs: list[RunConfig] = []

    monkeypatch.setattr("pipelines.run._run_once", lambda config, *_: configs.append(config))
    monkeypatch.setattr("pipelines.run.write_seeds_report", lambda *_: "report")
    monkeypatch.setattr("pipelines.run.seeds_table", lambda *_: "table")
    monkeypatch.setattr("pipelines.run.ablation_pairs", lambda *_: [])
    run(miniature(tmp_path, seed=4), seeds=3)
    texts = [yaml.safe_load(config.text()) for config in configs]
    assert [text["seed"] for text in texts] == [4, 5, 6]
    assert [Path(text["run_folder"]).name for text in texts] == ["run", "run-seed5", "run-seed6"]


def test_a_run_folder_has_one_writer(tmp_path: Path):
    with (
        sole_writer(tmp_path / "run"),
        pytest.raises(OutputError, match="Another run is writing"),
        sole_writer(tmp_path / "run"),
    ):
        pass
    with sole_writer(tmp_path / "run"):
        descriptor = os.open(tmp_path / "run" / ".owner", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def test_a_run_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "run").write_text("thesis")
    with pytest.raises(OutputError, match="is a file"):
        run(miniature(tmp_path))


def test_damaged_results_do_not_stop_a_run(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"name": ')
    refuse_other_run(tmp_path, "miniature", 1)


def test_folders_of_names_in_any_script_stay_apart():
    names = ["TA + NAN (weights)", "平均", "加权平均", "a b", "a-b", "???", "長" * 200]
    folders = folder_names(names)
    assert folders["TA + NAN (weights)"] == "ta-nan-weights"
    assert folders["平均"] == "平均"
    assert folders["a b"].startswith("a-b-")
    assert len(set(folders.values())) == len(names)
    assert max(len(folder.encode()) for folder in folders.values()) < 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merges": [{"name": "Individual", "method": "average"}]}, "called Individual"),
        ({"merges": [{"name": "Pretrained", "method": "average"}]}, "called Pretrained"),
        ({"merges": [{"name": "digits", "method": "average"}]}, "both called digits"),
        ({"experts": {"tasks": ["digits", "digits"]}}, "'?digits'? is named twice"),
        ({"experts": {"tasks": ["digits", "textur"]}}, "did you mean 'texture'"),
        ({"evaluate": {"benchmarks": ["digits", "digits"]}}, "is named twice"),
        ({"evaluate": {"benchmarks": ["digit"]}}, "did you mean 'digits'"),
        ({"experts": None, "models": ["a/x", "b/x"]}, "two models are both called x"),
        ({"experts": None, "models": ["a/Pretrained"]}, "called Pretrained"),
        ({"experts": None, "models": ["a/base"]}, "a model is called `base`, which"),
        ({"experts": None, "models": ["a/merge"]}, "a model is called `merge`, which"),
    ],
)
def test_names_that_would_mix_rows(tmp_path: Path, changes: dict[str, object], words: str):
    with pytest.raises(ValidationError, match=words):
        miniature(tmp_path, **changes)


def test_merges_that_no_recipe_may_have_are_refused_before_any_worker_starts(tmp_path: Path):
    merges = [
        {"name": "Arc", "method": "slerp"},
        {"name": "TA", "method": "task_arithmetic"},
        {"name": "Few", "method": "ties", "coefficients": [0.3]},
        {"name": "Trim", "method": {"name": "ties", "density": [0.1, 0.2, 0.3, 0.4]}},
    ]
    tasks = [*TASKS, "mnist"]
    with pytest.raises(ConfigError) as caught:
        check_run(miniature(tmp_path, merges=merges, experts={"tasks": tasks}))
    assert str(caught.value).splitlines() == [
        "merges: Arc: method slerp merges exactly 2 models, not 3",
        "merges: Few: 1 coefficients for 3 models; give one each",
        "merges: Trim: method.density has 4 numbers for 3 models; give one number, or one each",
    ]


def test_an_unknown_backbone_is_refused_before_any_worker_starts(tmp_path: Path):
    experts = {"backbone": "nan-merge-mimi", "tasks": TASKS}
    with pytest.raises(ConfigError, match="did you mean 'nan-merge-mini'"):
        check_run(miniature(tmp_path, experts=experts))
    check_run(miniature(tmp_path, experts=experts | {"backbone": "ViT-B-32"}))


def test_a_missing_library_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.extras.find_spec", lambda name: None if name == "mlflow" else 1)
    with pytest.raises(MissingExtraError, match=r"mlflow .*nan-merge\[track\]"):
        run(miniature(tmp_path))
    assert not (tmp_path / "run").exists()
    check_run(miniature(tmp_path, track={"mlflow": False}))


def test_a_password_is_not_kept(tmp_path: Path):
    text = miniature(tmp_path, track={"uri": "http://me:se@cret@host:5000"}).text()
    assert "uri: http://***@host:5000" in text
    assert "cret" not in text


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("http://me:pw@host:5000/", "http://host:5000/#/experiments/1"),
        ("sqlite:////a@b/mlflow.db", "mlflow ui --backend-store-uri sqlite:////a@b/mlflow.db"),
        ("mysql://me:pw@db/x", "mlflow ui --backend-store-uri mysql://***@db/x"),
    ],
)
def test_where_to_look_without_passwords(uri: str, line: str):
    assert how_to_look(hide_passwords(uri), "/#/experiments/1", "mlflow")[0] == line
