"""Results in object stores: whole or not there, continued, and never in the place of anything."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save_file

from nan_merge import object_store
from nan_merge.errors import OutputError
from nan_merge.manifest import MANIFEST_NAME
from nan_merge.merge import merge_checkpoint, merge_to_url
from nan_merge.object_output import local_copy, publish_to
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import run_serially
from tests.flaky_store import FlakyStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(object_store.CACHE_VARIABLE, str(tmp_path / "cache" / "stores"))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> Iterator[str]:
    """An empty place in memory; its name without the scheme."""
    name = f"bucket-{uuid4().hex}"
    FlakyStore.reset()
    yield name
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{name}"):
        memory.rm(f"/{name}", recursive=True)


@pytest.fixture
def recipe(tmp_path: Path) -> MergeRecipe:
    """A merge of two models into five files."""
    for number, name in enumerate(("math", "code")):
        (tmp_path / name).mkdir()
        tensors = {f"layers.{i}.w": torch.full((30, 40), float(i + number)) for i in range(5)}
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    models = [str(tmp_path / "math"), str(tmp_path / "code")]
    return MergeRecipe.model_validate({"models": models, "method": "average", "shard_bytes": 5000})


def result(folder: Path) -> Path:
    (folder / "out" / "sub").mkdir(parents=True)
    (folder / "out" / ".journal").mkdir()
    for name in ("model.safetensors", "a.json", "merge_manifest.json", "sub/x", ".journal/x"):
        (folder / "out" / name).write_bytes(os.urandom(100))
    return folder / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def remote(place: str) -> dict[str, bytes]:
    memory = fsspec.filesystem("memory")
    return {name.rpartition("/")[2]: memory.cat(name) for name in memory.find(f"/{place}")}


def test_a_result_is_published_with_its_manifest_last(tmp_path: Path, bucket: str, monkeypatch):
    sent: list[str] = []
    original = MemoryFileSystem.put_file

    def put(self, local, remote, *arguments, **options):
        sent.append(remote.partition(f"{bucket}/out/")[2])
        return original(self, local, remote, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    folder = result(tmp_path)
    steps: list[tuple[int, int]] = []
    publish_to(folder, f"memory://{bucket}/out", on_progress=lambda *step: steps.append(step))
    assert sorted(sent) == ["a.json", "merge_manifest.json", "model.safetensors", "sub/x"]
    assert sent[-1] == "merge_manifest.json"
    assert steps == [(100, 400), (200, 400), (300, 400), (400, 400)]
    memory = fsspec.filesystem("memory")
    assert memory.cat(f"/{bucket}/out/sub/x") == (folder / "sub" / "x").read_bytes()
    with pytest.raises(OutputError, match="holds a finished result already"):
        publish_to(folder, f"memory://{bucket}/out")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".sent")] == []


def test_a_store_that_refuses_to_be_written_gets_no_manifest(tmp_path: Path, bucket: str):
    FlakyStore.refused = "model.safetensors"
    with pytest.raises(OutputError, match=r"Cannot publish at flaky.*read-only\. Nothing is publ"):
        publish_to(result(tmp_path), f"flaky://{bucket}/out")
    assert not fsspec.filesystem("memory").exists(f"/{bucket}/out/merge_manifest.json")


def test_a_folder_that_is_not_finished_is_not_published(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match=r"no merge_manifest\.json"):
        publish_to(tmp_path, "memory://anywhere")


def test_a_second_attempt_sends_what_is_left_or_was_changed_on_either_side(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nan_merge.object_output.STREAMS", 1)  # so that the order is known
    folder, url = result(tmp_path), f"flaky://{bucket}/out"
    for name in ("b.json", "c.json"):
        (folder / name).write_bytes(os.urandom(100))
    FlakyStore.refused = "x"  # the last but the manifest
    with pytest.raises(OutputError):
        publish_to(folder, url)
    assert sorted(FlakyStore.sent) == ["a.json", "b.json", "c.json", "model.safetensors"]
    (folder / "a.json").write_bytes(os.urandom(100))
    fsspec.filesystem("memory").pipe(f"/{bucket}/out/b.json", os.urandom(100))
    FlakyStore.reset()
    publish_to(folder, url)
    assert sorted(FlakyStore.sent[:-1]) == ["a.json", "b.json", "x"]
    assert FlakyStore.sent[-1] == MANIFEST_NAME
    assert remote(f"{bucket}/out")["b.json"] == (folder / "b.json").read_bytes()


def test_what_an_upload_left_that_is_no_part_of_the_result_goes(tmp_path: Path, bucket: str):
    folder, url = result(tmp_path), f"flaky://{bucket}/out"
    FlakyStore.refused = MANIFEST_NAME
    with pytest.raises(OutputError):
        publish_to(folder, url)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    FlakyStore.reset()
    publish_to(folder, url)
    assert sorted(remote(f"{bucket}/out")) == [
        "a.json", "merge_manifest.json", "model-00001-of-00001.safetensors", "x",
    ]  # fmt: skip


def test_a_merge_goes_to_a_store_and_is_then_there(
    recipe: MergeRecipe, tmp_path: Path, bucket: str, cache: Path
):
    merge_checkpoint(recipe, tmp_path / "local")
    manifest, reused = merge_to_url(recipe, f"flaky://{bucket}/out")
    assert not reused
    assert len(manifest["files"]) == 5
    assert remote(f"{bucket}/out") == contents(tmp_path / "local")
    assert list((cache / "outputs").iterdir()) == []  # nothing is left here
    FlakyStore.reset()
    again = merge_to_url(recipe, f"flaky://{bucket}/out")
    assert again == (manifest, True)
    assert (FlakyStore.sent, FlakyStore.reads) == ([], 1)  # its manifest
    other = recipe.model_copy(update={"seed": 1})
    with pytest.raises(OutputError, match=r"flaky://.*/out holds another merge already"):
        merge_to_url(other, f"flaky://{bucket}/out")
    assert remote(f"{bucket}/out") == contents(tmp_path / "local")


def refuse_to_merge(tasks: Any) -> list[Any]:
    raise AssertionError("something was merged")


def test_a_place_that_holds_anything_else_is_refused_before_the_merge(
    recipe: MergeRecipe, bucket: str
):
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/{bucket}/llama/model-00001-of-00005.safetensors", b"another's weights")
    with pytest.raises(
        OutputError, match=r"llama holds model-00001-of-00005.safetensors, which is neither"
    ):
        merge_to_url(recipe, f"memory://{bucket}/llama", refuse_to_merge)
    with pytest.raises(OutputError, match="which is neither"):  # a file, not a folder
        merge_to_url(
            recipe, f"memory://{bucket}/llama/model-00001-of-00005.safetensors", refuse_to_merge
        )
    assert list(remote(f"{bucket}/llama").values()) == [b"another's weights"]


def test_a_result_that_lost_a_file_is_refused(recipe: MergeRecipe, bucket: str):
    merge_to_url(recipe, f"memory://{bucket}/out")
    fsspec.filesystem("memory").rm(f"/{bucket}/out/model-00002-of-00005.safetensors")
    with pytest.raises(OutputError, match=r"has lost model-00002-of-00005.safetensors\. Remove"):
        merge_to_url(recipe, f"memory://{bucket}/out", refuse_to_merge)


def test_an_upload_that_failed_is_continued_without_merging_again(
    recipe: MergeRecipe, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nan_merge.object_output.STREAMS", 1)
    FlakyStore.refused = "model-00003-of-00005.safetensors"
    url = f"flaky://{bucket}/out"
    with pytest.raises(OutputError, match="the same command continues"):
        merge_to_url(recipe, url, staging=tmp_path / "scratch")
    assert MANIFEST_NAME not in remote(f"{bucket}/out")
    sent = set(FlakyStore.sent)
    assert sent
    FlakyStore.reset()
    merge_to_url(recipe, url, refuse_to_merge, staging=tmp_path / "scratch")
    assert not sent & set(FlakyStore.sent)
    merge_checkpoint(recipe, tmp_path / "local")
    assert remote(f"{bucket}/out") == contents(tmp_path / "local")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_another_merge_takes_over_what_an_upload_left(
    recipe: MergeRecipe, tmp_path: Path, bucket: str
):
    url = f"flaky://{bucket}/out"
    FlakyStore.refused = MANIFEST_NAME
    with pytest.raises(OutputError):
        merge_to_url(recipe, url)
    FlakyStore.reset()
    one_file = recipe.model_copy(update={"shard_bytes": 10**9})
    merge_to_url(one_file, url)
    merge_checkpoint(one_file, tmp_path / "local")
    assert remote(f"{bucket}/out") == contents(tmp_path / "local")


def test_two_senders_to_one_place_are_kept_apart(recipe: MergeRecipe, bucket: str):
    url = f"memory://{bucket}/out"

    def merge_once_more(tasks: Any) -> list[Any]:
        with pytest.raises(OutputError, match=r"Another process is merging to memory://"):
            merge_to_url(recipe, url, refuse_to_merge)
        return run_serially(tasks)

    merge_to_url(recipe, url, merge_once_more)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from nan_merge import object_output
from nan_merge.merge import merge_to_url
from nan_merge.recipe import MergeRecipe

put, object_output.STREAMS = LocalFileSystem.put_file, 1

def put_half(self, local, remote, **options):
    if remote.endswith("model-00002-of-00005.safetensors"):
        data = Path(local).read_bytes()
        Path(remote).write_bytes(data[: len(data) // 2])
        print("half", flush=True)
        time.sleep(600)
    put(self, local, remote, **options)

LocalFileSystem.put_file = put_half
merge_to_url(MergeRecipe.model_validate_json(sys.argv[1]), sys.argv[2])
"""


def test_a_process_that_is_killed_while_it_sends_leaves_no_manifest_and_is_followed(
    recipe: MergeRecipe, tmp_path: Path
):
    store = tmp_path / "store" / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, recipe.model_dump_json(by_alias=True), f"file://{store}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = store / "model-00001-of-00005.safetensors"
    before = whole.stat().st_mtime_ns
    assert not (store / MANIFEST_NAME).exists()
    time.sleep(0.05)
    merge_to_url(recipe, f"file://{store}", refuse_to_merge)
    merge_checkpoint(recipe, tmp_path / "local")
    assert contents(store) == contents(tmp_path / "local")
    assert whole.stat().st_mtime_ns == before  # it was not sent again
    assert list(local_copy(f"file://{store}").parent.iterdir()) == []
