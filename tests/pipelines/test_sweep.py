"""A sweep on a miniature: searched on a dev split, shown on the rest, resumed, tidied up."""

import json
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from nan_merge.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.events import read_events
from pipelines.results import RunResults, read_results
from pipelines.run import run_config
from pipelines.split import dev_part
from pipelines.sweep_table import shown_results, sweep_sheet

TASKS = ("digits", "texture")
LAMBDAS = (0.2, 0.6, 1.0)
TA = {
    "name": "TA",
    "method": "task_arithmetic",
    "vary": {"coefficients.lambda": list(LAMBDAS)},
}
TIES = {"name": "TIES", "method": "ties", "vary": {"method.density": [0.2, 0.8]}}


def miniature(folder: Path, name: str, *merges: dict, **changes: object) -> RunConfig:
    sweep = {"merges": merges or (TA, TIES), **changes.pop("sweep", {})}  # type: ignore[dict-item]
    content = {
        "name": "miniature",
        "run_folder": folder / name,
        "cache": folder / "cache",
        "experts": {
            "tasks": TASKS,
            "text": {"steps": 5},
            "pretrain": {"steps": 10},
            "finetune": {"steps": 10},
        },
        "merges": [{"name": "Average", "method": "average"}],
        "sweep": sweep,
        "evaluate": {"benchmarks": TASKS},
        "track": {"mlflow": False},
        "cluster": {"num_workers": 2},
    }
    return RunConfig.model_validate(content | changes)


def run(config: RunConfig) -> str:
    console = Console(file=StringIO(), width=120)
    run_config(config, console=console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, miniature_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "cache").symlink_to(miniature_cache)
    os.environ["NAN_MERGE_CACHE"] = str(folder / "hashes")
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> tuple[Path, str]:
    return folder / "best", run(miniature(folder, "best"))


def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started although nothing is left to do")

    monkeypatch.setattr("cluster.session.ray_session", refuse)


def predictions_of(run_folder: Path, point: str, task: str) -> list[dict]:
    (path,) = (run_folder / "predictions").glob(f"{point}*/{task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def share_right(lines: list[dict], part: Callable[[str], bool]) -> tuple[float, int]:
    own = [line for line in lines if part(line["cluster_id"])]
    return sum(line["answer"] == line["target"] for line in own) / len(own), len(own)


def test_rows_are_of_samples_that_the_search_never_saw(first: tuple[Path, str]):
    run_folder, _ = first
    results = read_results(run_folder)
    dev = dev_part(0.3)
    assert [*results.sweep] == [f"TA, lambda={value:g}" for value in LAMBDAS] + [
        "TIES, density=0.2",
        "TIES, density=0.8",
    ]
    seen = []
    for task in TASKS:
        lines = predictions_of(run_folder, "ta-lambda-0.6", task)
        value, num_samples = share_right(lines, lambda cluster: not dev(cluster))
        row = results.row("TA, lambda=0.6", task)
        assert row is not None
        assert (row.value, row.num_samples) == (value, num_samples)
        assert 0 < num_samples < 500
        seen.append(share_right(lines, dev)[0])
    assert results.sweep["TA, lambda=0.6"].dev == pytest.approx(sum(seen) / 2)
    for model in ("Pretrained", "Individual", "Average"):
        row = results.row(model, "digits")
        assert row is not None and row.num_samples < 500


def test_the_best_of_each_entry_is_marked_and_kept(first: tuple[Path, str]):
    run_folder, output = first
    results = read_results(run_folder)
    selected = [name for name, point in results.sweep.items() if point.is_selected]
    assert [results.sweep[name].group for name in selected] == ["TA", "TIES"]
    for name in selected:
        group = results.sweep[name].group
        others = [p.objective for p in results.sweep.values() if p.group == group]
        assert results.sweep[name].objective == max(others)
        assert f"{name} †" in output
    kept = {path.parent.name for path in (run_folder / "checkpoints").glob("*/model.safetensors")}
    assert kept == {"average"} | {Path(_merge(results, name).folder).name for name in selected}
    for name in results.sweep.keys() - set(selected):
        assert _merge(results, name).folder == ""
    assert len(list((run_folder / "points").glob("*/merge_manifest.json"))) == 5


def _merge(results: RunResults, name: str):
    return next(merge for merge in results.merges if merge.model == name)


def test_all_merges_are_written_in_one_reading(first: tuple[Path, str]):
    run_folder, _ = first
    events = [e for e in read_events(run_folder / "events.jsonl") if e["event"] == "stage begun"]
    stages = {event["stage"]: event["total"] for event in events}
    assert stages["Merging 6 checkpoints"] == 1  # one file of weights, six results
    assert stages["Evaluating 5 models"] == 5 * 2 * 500  # every model is loaded once


def test_a_second_run_computes_nothing_and_finds_the_same(
    first: tuple[Path, str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run_folder, output = first
    no_ray(monkeypatch)
    before = (run_folder / "sweep.json").read_bytes()
    again = run(miniature(folder, "best"))
    assert "5 of 5 merges were scored before." in again
    assert (run_folder / "sweep.json").read_bytes() == before
    table = [line for line in output.splitlines() if "±" in line]
    assert [line for line in again.splitlines() if "±" in line] == table


def test_the_selection_does_not_look_at_held_out_samples(
    first: tuple[Path, str], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    run_folder, _ = first
    before = read_results(run_folder)
    name = next(n for n, p in before.sweep.items() if not p.is_selected and p.group == "TA")
    (path,) = (run_folder / "predictions").glob(
        f"ta-lambda-{before.sweep[name].values['coefficients.lambda']:g}-*/digits.jsonl"
    )
    whole, dev = path.read_text(), dev_part(0.3)
    head, *lines = whole.splitlines()
    changed = [json.loads(line) for line in lines]
    for line in changed:
        if not dev(line["cluster_id"]):
            line["answer"] = line["target"]  # perfect, where the search must not look
    path.write_text("\n".join([head, *map(json.dumps, changed)]) + "\n")
    try:
        no_ray(monkeypatch)
        run(miniature(folder, "best"))
        after = read_results(run_folder)
    finally:
        path.write_text(whole)
    run(miniature(folder, "best"))  # the results are again those of the real predictions
    assert after.sweep == before.sweep
    row = after.row(name, "digits")
    assert row is not None and row.value == 1


@pytest.mark.slow
def test_further_points_are_added_and_the_others_kept(folder: Path, first: tuple[Path, str]):
    more = {**TA, "vary": {"coefficients.lambda": [*LAMBDAS, 0.4]}}
    output = run(miniature(folder, "best", more, TIES))
    assert "5 of 6 merges were scored before." in output
    assert "Evaluating 1 models" in output
    assert "TA, lambda=0.4" in read_results(folder / "best").sweep


@pytest.mark.slow
def test_waves_find_what_one_wave_finds(
    folder: Path, first: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
):
    run_folder, _ = first
    monkeypatch.setattr("pipelines.sweep.wave_size", lambda *_: 2)
    output = run(miniature(folder, "waves", sweep={"keep": "none"}))
    assert "Merges 3 to 4 of 5" in output
    waves, whole = read_results(folder / "waves"), read_results(run_folder)
    for name in waves.sweep:
        assert waves.average(name) == whole.average(name)
    assert not [*(folder / "waves" / "checkpoints").glob("t*")]


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_goes_on(
    folder: Path, first: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []

    def interrupt(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_record(*arguments)  # type: ignore[arg-type]

    from pipelines.sweep_records import write_record

    monkeypatch.setattr("pipelines.sweep.wave_size", lambda *_: 2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipelines.sweep.write_record", interrupt)
        run(miniature(folder, "killed", sweep={"keep": "all"}))
    output = run(miniature(folder, "killed", sweep={"keep": "all"}))
    assert "2 of 5 merges were scored before." in output
    assert len([*(folder / "killed" / "checkpoints").glob("*/model.safetensors")]) == 6
    killed, whole = read_results(folder / "killed"), read_results(first[0])
    for name in killed.sweep:
        assert killed.average(name) == whole.average(name)


def test_a_merge_that_cannot_be_made_does_not_end_the_sweep(folder: Path, first: tuple[Path, str]):
    (experts,) = (folder / "cache").glob("experts-*")
    base = str(experts / "clip" / "image_tower")
    nan = {
        "name": "NAN",
        "method": "task_arithmetic",
        "coefficients": "nan",
        "vary": {"coefficients.target": ["weights", "task_vector"]},
    }
    models = [str(experts / "digits"), {"path": base, "name": "unchanged"}]
    own = {"experts": None, "base": base, "clip": str(experts / "clip"), "models": models}
    config = miniature(folder, "failing", nan, merges=(), **own)
    output = run(config)
    results = read_results(folder / "failing")
    assert [*results.sweep] == ["NAN, target=weights"]
    (name, why), *_ = results.failures.items()
    assert name == "NAN, target=task_vector"
    assert "unchanged" in why and f"warning: {name} cannot be merged" in output


def test_a_split_that_leaves_nothing_is_refused_before_anything_is_merged(
    folder: Path, first: tuple[Path, str]
):
    config = miniature(folder, "empty", sweep={"dev_share": 0.001})
    with pytest.raises(ConfigError, match=r"with 0.001, .*no dev samples"):
        run(config)
    assert not (folder / "empty" / "checkpoints").exists()


def test_an_objective_that_is_not_measured_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="'photo' is not measured, have average, digits, texture"):
        run(miniature(tmp_path, "run", sweep={"objective": "photo"}))


def test_a_long_table_shows_the_selected_and_the_best(results: RunResults):
    from pipelines.results import SweepPoint

    names = [merge.model for merge in results.merges]
    points = {
        name: SweepPoint("M", {"x": place}, place / 100, 0.01, place / 100, place == 3)
        for place, name in enumerate(names)
    }
    from dataclasses import replace

    swept = replace(results, sweep=points)
    shown = shown_results(swept, most=3)
    merged = [model for model in shown.models() if model in points]
    assert merged == [names[3], names[-2], names[-1]]
    sheet = sweep_sheet(swept, most=3)
    assert [line.label for line in sheet.lines] == [names[-1], names[-2], names[-3]]
    assert "10 more merges are in sweep.json" in sheet.caption
