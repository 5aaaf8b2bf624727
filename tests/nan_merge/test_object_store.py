"""Checkpoints by URL, on fsspec's own file systems and on one that fails."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save

from nan_merge import object_store
from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import CheckpointError, MissingExtraError, OutputError
from nan_merge.merge import merge_checkpoint
from nan_merge.object_store import headers_only, is_url, open_url, read_range, stage
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from nan_merge.safetensors_file import read_header
from tests.flaky_store import FlakyStore

WEIGHTS = save({"w": torch.arange(100_000, dtype=torch.float32)})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(object_store, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(object_store, "STREAMS", 1)  # so that which read fails is known
    monkeypatch.setenv(object_store.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder in memory that holds a small checkpoint; its name without the scheme."""
    name = f"bucket-{uuid4().hex}/model"
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{name}/model.safetensors", WEIGHTS)
    memory.pipe(f"/{name}/config.json", b"{}")
    memory.pipe(f"/{name}/training.log", b"not wanted")
    FlakyStore.reset()
    yield name
    memory.rm(f"/{name.partition('/')[0]}", recursive=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


def test_what_is_a_url_and_what_is_not():
    assert is_url("s3://bucket/model")
    assert is_url("simplecache::gs://bucket/model")
    for path in ("org/model", "./s3:/x", "/data/model", "model@main", "C:\\models"):
        assert not is_url(path)


def test_a_checkpoint_is_copied_with_what_belongs_to_it(cache: Path, bucket: str):
    folder = stage(f"memory://{bucket}")
    assert folder.parent == cache
    assert names(folder) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_what_lies_beside_weights_is_copied_alone(cache: Path, bucket: str):
    whole = stage(f"memory://{bucket}")
    beside = stage(f"memory://{bucket}", weights=False)
    assert names(beside) == ["config.json"]
    assert names(whole) == ["config.json", "model.safetensors"]
    fsspec.filesystem("memory").rm(f"/{bucket}/model.safetensors")
    assert stage(f"memory://{bucket}", weights=False) == beside


def test_many_files_are_copied_at_once(cache: Path, bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(object_store, "STREAMS", 8)
    memory = fsspec.filesystem("memory")
    for number in range(20):
        memory.pipe(f"/{bucket}/{number}.json", str(number).encode() * 1000)
    folder = stage(f"flaky://{bucket}")
    for number in range(20):
        assert (folder / f"{number}.json").read_bytes() == str(number).encode() * 1000
    before = FlakyStore.reads
    stage(f"flaky://{bucket}")
    assert FlakyStore.reads == before


def test_one_file_is_copied_as_a_file(cache: Path, bucket: str):
    path = stage(f"memory://{bucket}/model.safetensors")
    assert path.name == "model.safetensors"
    assert path.read_bytes() == WEIGHTS


def test_local_files_can_be_named_by_url(cache: Path, tmp_path: Path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(WEIGHTS)
    assert open_checkpoint(str(stage(f"file://{tmp_path}/m"))).num_parameters == 100_000


def test_a_second_time_nothing_is_read(cache: Path, bucket: str):
    stage(f"flaky://{bucket}")
    before = FlakyStore.reads
    assert before == 5 + 1  # 400,080 bytes in pieces of 100,000, and the config
    stage(f"flaky://{bucket}")
    assert FlakyStore.reads == before


def test_a_changed_object_is_copied_anew_and_a_removed_one_goes(cache: Path, bucket: str):
    folder = stage(f"memory://{bucket}")
    memory = fsspec.filesystem("memory")
    changed = save({"w": torch.zeros(100_000)})
    assert len(changed) == len(WEIGHTS)
    memory.pipe(f"/{bucket}/model.safetensors", changed)
    memory.rm(f"/{bucket}/config.json")
    assert stage(f"memory://{bucket}") == folder
    assert names(folder) == ["model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == changed


def test_an_error_that_passes_is_not_noticed(cache: Path, bucket: str):
    FlakyStore.good, FlakyStore.failures = 2, object_store.ATTEMPTS - 1
    folder = stage(f"flaky://{bucket}")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_error_that_stays_ends_it_and_the_next_attempt_continues(cache: Path, bucket: str):
    FlakyStore.good, FlakyStore.failures = 3, object_store.ATTEMPTS
    with pytest.raises(CheckpointError, match=r"connection reset by peer\. .*command continues"):
        stage(f"flaky://{bucket}")
    (folder,) = cache.iterdir()
    assert names(folder) == ["config.json"]
    FlakyStore.reads = 0
    stage(f"flaky://{bucket}")
    assert FlakyStore.reads == 3  # the config and two pieces of five were there
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_missing_file_is_not_tried_again(cache: Path, bucket: str):
    with pytest.raises(CheckpointError, match=r"There is nothing at flaky://nowhere/model\."):
        stage("flaky://nowhere/model")


def test_a_folder_without_weights_is_refused(cache: Path, bucket: str):
    fsspec.filesystem("memory").rm(f"/{bucket}/model.safetensors")
    with pytest.raises(CheckpointError, match="holds no weights"):
        stage(f"memory://{bucket}")


def test_an_object_that_changes_under_the_copy_is_refused(cache: Path, bucket: str, monkeypatch):
    memory = fsspec.filesystem("memory")
    original = MemoryFileSystem.cat_file

    def change_after_reading(self, path, start=None, end=None, **options):
        piece = original(self, path, start, end, **options)
        if path.endswith(".safetensors"):
            memory.pipe(path, save({"w": torch.ones(100_000)}))
        return piece

    monkeypatch.setattr(MemoryFileSystem, "cat_file", change_after_reading)
    with pytest.raises(CheckpointError, match="changed while it was copied"):
        stage(f"memory://{bucket}")
    (folder,) = cache.iterdir()
    assert names(folder) == ["config.json"]


def test_headers_alone_are_enough_for_a_plan(cache: Path, bucket: str):
    with headers_only():
        folder = stage(f"memory://{bucket}")
    path = folder / "model.safetensors"
    assert path.stat().st_size == len(WEIGHTS)
    assert path.stat().st_blocks * 512 <= 8192  # the rest is a hole
    assert read_header(path)["w"].shape == (100_000,)
    whole = stage(f"memory://{bucket}")
    assert whole != folder
    assert torch.equal(load_file(whole / "model.safetensors")["w"], torch.arange(100_000.0))


def test_a_merge_is_planned_from_headers(cache: Path, bucket: str):
    fsspec.filesystem("memory").pipe(f"/{bucket}2/model.safetensors", WEIGHTS)
    models = [f"flaky://{bucket}", f"flaky://{bucket}2"]
    with headers_only():
        plan = plan_merge(MergeRecipe.model_validate({"models": models, "method": "average"}))
    assert plan.input_bytes == 2 * 400_000
    assert FlakyStore.reads == 2 * 2 + 1  # two of each header, and the config


def test_ranges_are_read_alone(bucket: str):
    url = f"flaky://{bucket}/model.safetensors"
    assert read_range(url, 0, 8) == WEIGHTS[:8]
    assert read_range(url, 400_000, 1000) == WEIGHTS[400_000:]
    with pytest.raises(CheckpointError, match="There is nothing at"):
        read_range(f"memory://{bucket}/other", 0, 8)


def test_what_no_library_knows_is_told(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CheckpointError, match=r"no URL of an object store: .*nosuch"):
        open_url("nosuch://bucket/model")
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nan-merge\[objects\]'"):
        open_url("s3://bucket/model")


def test_a_full_disk_is_told(cache: Path, bucket: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(object_store, "sync_path", refuse)
    with pytest.raises(OutputError, match="No space left on the disk"):
        stage(f"memory://{bucket}")


def test_a_recipe_may_name_its_models_by_url(cache: Path, bucket: str, tmp_path: Path):
    fsspec.filesystem("memory").pipe(f"/{bucket}2/model.safetensors", WEIGHTS)
    models = [f"memory://{bucket}", f"memory://{bucket}2"]
    recipe = MergeRecipe.model_validate({"models": models, "method": "average"})
    merge_checkpoint(recipe, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["w"], torch.arange(100_000.0))
