"""Table 1 at a small scale: eight drawn sets in all layouts, towers of all forms, the paper's rows.

Workers work in this process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from evaluators.backends.clip import build_clip, new_clip
from evaluators.backends.clip_checkpoints import save_clip
from evaluators.clip_sets import CLIP_SETS
from evaluators.torchvision_repair import repair
from nan_merge.errors import CheckpointError, ConfigError, DataError
from pipelines import run
from pipelines.published import published_sheet
from pipelines.results import RunResults
from tests.clip_runs import Here, small_table1, write_data, write_towers, write_training_data

repair()
for package in ("open_clip", "scipy", "pyarrow", "matplotlib"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table1")
    write_data(folder / "data")
    write_towers(folder / "towers")
    return folder


@pytest.fixture
def workers(monkeypatch, tmp_path) -> Here:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    here = Here()
    monkeypatch.setattr(run, "open_workers", lambda *_: here)
    # Plots are slow, and tested elsewhere.
    monkeypatch.setattr(run, "publish_results", lambda *arguments: here.notes.extend(arguments[-1]))
    return here


def run_here(made: Path, out: Path, **changes) -> RunResults:
    config = small_table1(made, out, **changes)
    (results,) = run.run_config(config, console=Console(quiet=True))
    return results


@pytest.fixture(scope="module")
def with_training(made: Path) -> Path:
    write_training_data(made / "data")
    return made


@pytest.mark.timeout(600)
def test_all_rows_of_the_table_come_with_the_papers_numbers(with_training, workers, tmp_path):
    made = with_training
    results = run_here(made, tmp_path, whole=True)
    config = small_table1(made, tmp_path, whole=True)
    assert len(config.merges) == 9  # all but the base, the individual models and multi-task
    assert config.published is not None
    assert results.benchmarks() == list(CLIP_SETS)
    assert results.models() == ["Pretrained", "Individual", *(m.name for m in config.merges)]
    counts = {row.benchmark: row.num_samples for row in results.rows}
    assert counts == {name: len(each.class_names) for name, each in CLIP_SETS.items()}
    sheet = published_sheet(results, config.published)
    assert [line.label for line in sheet.lines][:3] == [
        "Pretrained",
        "Individual",
        "Traditional MTL",
    ]
    by_label = {line.label: line for line in sheet.lines}
    assert by_label["Ties + NAN for Ties+NAN"].cells[-1].text == "73.8"
    own = by_label["TA + NAN"].cells[::2]
    expected = [results.row("TA + NAN", name) for name in CLIP_SETS]
    assert [cell.text for cell in own[:-1]] == [f"{row.value * 100:.1f}" for row in expected if row]
    assert by_label["Traditional MTL"].cells[0].text == "—"
    assert "the mean of its row is 89.1 in Traditional MTL (printed 88.9), 71.9 in TA + NAN" in (
        sheet.caption
    )
    assert "SUN397 397 of 19,850" in " ".join(workers.notes)
    assert "Suspicious: Pretrained is no better than chance on" in workers.notes[-1]
    # Everything was decoded, converted and asked once.
    before = workers.num_tasks, workers.num_items
    again = run_here(made, tmp_path, whole=True)
    assert (workers.num_tasks, workers.num_items) == before
    assert again.rows == results.rows


@pytest.mark.slow
def test_forms_of_towers_do_not_change_the_scores(made, workers, tmp_path):
    """The same towers as checkpoints of ours: the same merges to the bit, the same answers."""
    mixed = run_here(made, tmp_path / "mixed")
    own = run_here(made, tmp_path / "own", models="ours")
    assert mixed.rows == own.rows
    weights = [
        sorted(path.read_bytes() for path in (tmp_path / name).rglob("checkpoints/*/*.safetensors"))
        for name in ("mixed", "own")
    ]
    assert len(weights[0]) > 3 and weights[0] == weights[1]


def test_a_tower_of_another_architecture_is_refused_before_anything_is_decoded(
    made, workers, tmp_path
):
    config = small_table1(made, tmp_path)
    path = Path(config.models[3].path)
    content = json.loads((path / "config.json").read_text())
    content["open_clip"]["quick_gelu"] = True
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(content))
    (other / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="QuickGELU mismatch"):
        run_here(made, tmp_path, paths={3: other})
    assert workers.num_tasks == 0


def test_all_that_is_wrong_with_the_data_is_told_at_once(made, workers, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in CLIP_SETS:
        if name not in ("SVHN", "DTD"):
            (data / name).symlink_to(next((made / "data").glob(f"{name}*")))
    (data / "DTD" / "test" / "zebra").mkdir(parents=True)
    with pytest.raises(DataError) as error:
        run_here(made, tmp_path, data=data)
    assert "no folder" in str(error.value) and "SVHN" in str(error.value)
    assert "DTD has no class zebra" in str(error.value)


def test_a_run_without_data_or_clip_says_what_to_give(made, workers, tmp_path, monkeypatch):
    monkeypatch.delenv("NAN_MERGE_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"evaluate\.data.*NAN_MERGE_DATA"):
        run_here(made, tmp_path, data=None)
    with pytest.raises(ConfigError, match="needs `clip`"):
        run_here(made, tmp_path, clip=None)


def test_broken_images_are_named_and_nothing_is_decoded_twice(made, workers, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    broken = data / "EuroSAT" / "EuroSAT_splits" / "test" / "river" / "0.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:100])
    with pytest.raises(DataError, match=r"river/0\.png: is broken"):
        run_here(made, tmp_path, data=data)
    broken.write_bytes(good)
    run_here(made, tmp_path, data=data)


def test_a_clip_of_another_backbone_is_refused(made, workers, tmp_path):
    config = build_clip("nan-merge-mini", seed=0).tower.model_config
    shallow = {**config, "vision_cfg": {**config["vision_cfg"], "layers": 2}}
    save_clip(new_clip("shallow", shallow, {}, seed=0), tmp_path / "clip")
    with pytest.raises(CheckpointError, match=r"layers 2.*but `backbone`.*layers 4"):
        run_here(made, tmp_path, clip=str(tmp_path / "clip"))
