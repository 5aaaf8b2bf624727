"""Hub ids, with the real client against a hub on this machine; the real hub is never asked."""

import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from nan_merge import hub
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.merge import merge_checkpoint
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from pipelines.plan import plan_command
from tests.fake_hub import FakeHub, serve

NUM_ELEMENTS = 200_000  # of one tensor: far more than the client asks for to read a header


def tensors(size: float) -> dict[str, torch.Tensor]:
    return {"layers.0.weight": torch.full((NUM_ELEMENTS,), size), "norm.weight": torch.ones(3)}


@pytest.fixture
def models(tmp_path: Path) -> Iterator[FakeHub]:
    """Three models in safetensors, one of them in two files, and two that are pickled."""
    root = tmp_path / "hub"
    for number, name in enumerate(("base", "math", "sharded", "pickled", "clip")):
        folder = root / "org" / name
        (folder / "onnx").mkdir(parents=True)
        (folder / "onnx/model.bin").write_bytes(b"another format")
        (folder / "training_args.bin").write_bytes(b"no weights")
        (folder / "config.json").write_text('{"torch_dtype": "float32"}')
        values = tensors(1.0 + number)
        if name == "sharded":
            shards = {
                f"model-0000{i + 1}-of-00002.safetensors": key for i, key in enumerate(values)
            }
            for file, key in shards.items():
                save_file({key: values[key]}, folder / file)
            index = {"weight_map": {key: file for file, key in shards.items()}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        elif name == "pickled":
            torch.save(values, folder / "pytorch_model.bin")
        elif name == "clip":
            torch.save(values, folder / "open_clip_pytorch_model.bin")
            (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
        else:
            save_file(values, folder / "model.safetensors")
            torch.save(values, folder / "pytorch_model.bin")
    with serve(root) as fake:
        yield fake


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The client takes the fake hub for the real one; it reads its settings from these names."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if "models" in request.fixturenames:
        url = request.getfixturevalue("models").url
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)


def recipe(*names: str, **rest: Any) -> MergeRecipe:
    return MergeRecipe.model_validate(
        {"base": "org/base", "models": names, "method": "task_arithmetic", **rest}
    )


def test_a_plan_reads_headers_and_no_weights(models: FakeHub):
    with hub.headers_only():
        plan = plan_merge(recipe("org/math@main", "org/sharded"))
    assert [tensor.name for tensor in plan.tensors] == ["layers.0.weight", "norm.weight"]
    assert plan.output_bytes == 4 * (NUM_ELEMENTS + 3)
    assert models.sent["org/base/config.json"] > 0
    weights = {name: n for name, n in models.sent.items() if name.endswith(".safetensors")}
    assert len(weights) == 4
    assert max(weights.values()) <= 100_001  # the first bytes, in which the client finds a header
    assert not any(name.endswith(".bin") for name in models.sent)


def test_a_folder_for_a_config_alone_is_fetched_without_weights(models: FakeHub):
    folder = hub.resolve_folder("org/sharded@main", weights=False)
    assert (folder / "config.json").is_file()
    assert not any(name.endswith((".safetensors", ".bin")) for name in models.sent)


def test_the_plan_command_takes_headers_alone(models: FakeHub):
    written = io.StringIO()
    plan_command(recipe("org/math"), None, Console(file=written, width=200))
    assert "2 files (0.002 GB) are still on the hub" in written.getvalue()
    assert max(models.sent.values()) <= 100_001


def test_a_plan_of_hub_ids_finds_what_does_not_fit(models: FakeHub):
    other = models.root / "org/other"
    other.mkdir()
    save_file({"layers.0.weight": torch.ones(7)}, other / "model.safetensors")
    with hub.headers_only(), pytest.raises(IncompatibleError) as caught:
        plan_merge(recipe("org/other"))
    assert "layers.0.weight: other has shape (7,)" in str(caught.value)
    assert "lacks tensor norm.weight" in str(caught.value)


def test_safetensors_are_fetched_and_pickles_only_where_there_are_no_others(
    models: FakeHub, tmp_path: Path
):
    three = recipe("org/math", "org/pickled", "org/clip", coefficients=[1.0, 0.5, 0.25])
    merge_checkpoint(three, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    # Base 1; math 2, pickled 4 and clip 5 minus the base, each times its coefficient.
    expected = 1 + 1.0 * 1 + 0.5 * 3 + 0.25 * 4
    assert torch.equal(merged["layers.0.weight"], torch.full((NUM_ELEMENTS,), expected))
    fetched = {name for name, count in models.sent.items() if count and "config" not in name}
    assert fetched == {
        "org/base/model.safetensors",
        "org/math/model.safetensors",
        "org/pickled/pytorch_model.bin",
        "org/clip/open_clip_pytorch_model.bin",
    }
    models.sent.clear()
    with hub.headers_only():
        plan_merge(three)
    assert not any(models.sent.values())  # all of it is in the cache


def test_a_header_that_is_none_is_an_error_of_that_model(models: FakeHub):
    (models.root / "org/math/model.safetensors").write_bytes(b"\xff" * 50)
    with hub.headers_only(), pytest.raises(CheckpointError, match="org/math is damaged on the hub"):
        plan_merge(recipe("org/math"))


def test_a_header_that_lies_about_sizes_is_an_error_of_that_model(models: FakeHub):
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 2**62 + 12]}
    text = json.dumps({"norm.weight": entry}).encode()
    (models.root / "org/math/model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with hub.headers_only(), pytest.raises(CheckpointError, match=r"org/math: the header of model"):
        plan_merge(recipe("org/math"))


@pytest.mark.parametrize("is_plan", [True, False])
def test_a_model_that_the_hub_does_not_show_is_named(models: FakeHub, is_plan: bool):
    message = "org/gone is neither a folder here nor a model that the hub shows you"
    only = hub.headers_only() if is_plan else nullcontext()
    with only, pytest.raises(CheckpointError, match=message):
        plan_merge(recipe("org/gone"))


def test_a_network_that_is_down_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with hub.headers_only(), pytest.raises(CheckpointError, match="run `hf download org/model --l"):
        hub.resolve_folder("org/model@v1")
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        hub.resolve_folder("org/model")


def test_the_stand_ins_vanish_with_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: list[Path] = []

    def fetch(_: str, parent: Path) -> Path:
        seen.append(parent)
        return parent

    monkeypatch.setattr(hub, "_fetch_headers", fetch)
    with hub.headers_only():
        assert hub.resolve_folder("org/model").is_dir()
        assert hub.resolve_folder(str(tmp_path)) == tmp_path  # folders are what they are
    assert not seen[0].exists()
