"""A merged checkpoint in an object store and on a hub."""

import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from nan_merge.errors import ConfigError, OutputError
from nan_merge.manifest import MANIFEST_NAME
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe
from pipelines.push import place_of_merge, push, push_command
from tests.upload_hub import UploadHub, taking_uploads


@pytest.fixture
def bucket() -> Iterator[str]:
    name = f"memory://bucket-{uuid4().hex}"
    yield name
    fsspec.filesystem("memory").rm(name.removeprefix("memory:/"), recursive=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with taking_uploads() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # Weights go by the older protocol: that of xet is served by the hub alone.
        monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        yield hub


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    return merge_of(tmp_path, "average")


def merge_of(folder: Path, name: str, weight: float = 1.0) -> Path:
    for number, model in enumerate(("math", "code")):
        (folder / model).mkdir(exist_ok=True)
        save_file({"w": torch.full((30, 40), float(number))}, folder / model / "model.safetensors")
        (folder / model / "config.json").write_text("{}")
    models = [str(folder / "math"), {"path": str(folder / "code"), "weight": weight}]
    recipe = MergeRecipe.model_validate({"models": models, "method": "average"})
    return merge_checkpoint(recipe, folder / name).output


def test_an_object_store_holds_every_file_and_a_second_push_nothing_new(merged: Path, bucket: str):
    url = f"{bucket}/models/average"
    console = Console(file=StringIO(), width=200)
    push_command(merged, url, console, public=False)
    assert isinstance(console.file, StringIO)
    assert f"is at {url}." in console.file.getvalue()
    store = fsspec.filesystem("memory")
    path = url.removeprefix("memory:/")
    there = {Path(name).name for name in store.ls(path, detail=False)}
    assert there == {file.name for file in merged.iterdir()}
    for file in merged.iterdir():
        assert store.cat(f"{path}/{file.name}") == file.read_bytes()
    before = {name: store.info(f"{path}/{name}")["created"] for name in there}
    assert push(merged, url) == url
    assert {name: store.info(f"{path}/{name}")["created"] for name in there} == before


def test_another_merge_is_never_written_over(merged: Path, bucket: str, tmp_path: Path):
    push(merged, f"{bucket}/x")
    with pytest.raises(OutputError, match="holds another merge already"):
        push(merge_of(tmp_path, "other", weight=3.0), f"{bucket}/x")


def test_a_hub_gets_a_private_repository(merged: Path, hub: UploadHub):
    place = push(merged, "hf://me/average")
    assert place == f"{hub.url}/me/average"
    assert hub.repositories == {"me/average": True}
    for file in merged.iterdir():
        assert hub.files[f"me/average/{file.name}"] == file.read_bytes()
    push(merged, "hf://me/average")  # again: the repository is there
    push(merged, "hf://me/open", public=True)
    assert hub.repositories["me/open"] is False


def test_a_hub_that_refuses_is_explained(merged: Path, hub: UploadHub):
    hub.refuses = True
    with pytest.raises(OutputError, match=r"Cannot push to hf://me/average: .*HF_TOKEN"):
        push(merged, "hf://me/average")


@pytest.mark.parametrize("place", ["models/average", "hf://average", "hf://a/b/c"])
def test_a_place_that_is_none_is_refused(merged: Path, place: str):
    with pytest.raises(ConfigError, match=r"neither the URL|no repository of the hub"):
        push(merged, place)


def test_half_a_merge_is_not_pushed(merged: Path, bucket: str, tmp_path: Path):
    copy = shutil.copytree(merged, tmp_path / "half")
    (copy / "model.safetensors").write_bytes(b"cut off")
    for folder in (copy, tmp_path / "math"):
        with pytest.raises(OutputError, match="holds no whole merge"):
            push(folder, f"{bucket}/x")
    fsspec.filesystem("memory").pipe(f"{bucket.removeprefix('memory:/')}/keep", b"")
    assert MANIFEST_NAME in {file.name for file in merged.iterdir()}


def test_merges_of_a_run_have_places_of_their_own():
    assert place_of_merge("s3://b/run", "TA, lambda=0.3") == "s3://b/run/ta-lambda-0.3"
    assert place_of_merge("hf://me/run/", "TIES + NAN") == "hf://me/run-ties-nan"
