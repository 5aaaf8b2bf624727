import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nan_merge.checkpoint import layer_of, natural_key, open_checkpoint
from nan_merge.errors import CheckpointError, IncompatibleError, OutputError
from nan_merge.plan import check_disk, plan_merge
from nan_merge.recipe import MergeRecipe


def recipe(base: str, *models: str, **more: object) -> MergeRecipe:
    return MergeRecipe.model_validate(
        {"base": base, "models": models, "method": "task_arithmetic", **more}
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.11.mlp.up_proj.weight", "model.layers.11"),
        ("visual.transformer.resblocks.3.ln_1.bias", "visual.transformer.resblocks.3"),
        ("lm_head.weight", "lm_head.weight"),
        ("conv1d.weight", "conv1d.weight"),
    ],
)
def test_a_layer_is_the_prefix_through_the_first_number(name: str, layer: str):
    assert layer_of(name) == layer


def test_numbers_in_names_count():
    assert sorted(["l.10", "l.9", "a"], key=natural_key) == ["a", "l.9", "l.10"]


def test_a_sharded_checkpoint_is_one_model(tmp_path: Path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    opened = open_checkpoint(str(tmp_path))
    assert list(opened.tensors) == ["a", "b"]
    assert opened.num_parameters == 5


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "x/y.safetensors", 3])
def test_an_index_may_not_point_outside_its_folder(tmp_path: Path, name: object):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"no file of this folder\. Download or save"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "[" * 100_000])
def test_a_damaged_index_is_named_with_its_mend(tmp_path: Path, content: str):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged: .*Download or save"):
        open_checkpoint(str(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"1 of 1 files.*model-00001-of-00001"):
        open_checkpoint(str(tmp_path))


def test_a_file_that_only_claims_to_be_a_checkpoint_is_refused(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(str(tmp_path))


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors file"):
        open_checkpoint(str(tmp_path))


def test_a_missing_folder_says_where_it_was_looked_for(tmp_path: Path):
    with pytest.raises(CheckpointError, match=f"looked for {tmp_path}/nothing"):
        open_checkpoint(f"{tmp_path}/nothing")


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"hub cannot be reached.*hf download some-org/model"):
        open_checkpoint("some-org/model")


def test_all_missing_checkpoints_are_listed_at_once(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"(?s)3 things must be mended.*/x .*/y .*/z "):
        plan_merge(recipe(f"{tmp_path}/x", f"{tmp_path}/y", f"{tmp_path}/z"))


def test_every_difference_is_listed_at_once(write_checkpoint):
    base = write_checkpoint("base", {"a": torch.ones(2, 3), "b": torch.ones(1), "c": torch.ones(4)})
    model = write_checkpoint("m", {"a": torch.ones(3, 3), "c": torch.arange(4), "d": torch.ones(1)})
    with pytest.raises(IncompatibleError) as caught:
        plan_merge(recipe(base, model))
    message = str(caught.value)
    assert "4 problems" in message
    assert "a: m has shape (3, 3)" in message
    assert "base has (2, 3)" in message
    assert "lacks tensor b" in message
    assert "c: m holds int64" in message
    assert "has a tensor that base lacks: d" in message


def test_the_same_folder_twice_is_refused(family: dict[str, str]):
    twice = {"path": family["math"], "name": "again"}
    spec = MergeRecipe.model_validate(
        {"base": family["base"], "models": [family["math"], twice], "method": "task_arithmetic"}
    )
    with pytest.raises(IncompatibleError, match="math and again are the same folder"):
        plan_merge(spec)


def test_whole_layers_are_packed_into_shards(family: dict[str, str]):
    plan = plan_merge(recipe(family["base"], family["math"], shard_bytes=300))
    assert plan.shards[0].file_name == "model-00001-of-00003.safetensors"
    assert [[t.name for t in shard.tensors] for shard in plan.shards] == [
        ["embed.weight", "empty", "layers.0.bias", "layers.0.weight"],
        ["layers.1.weight"],
        ["layers.10.weight", "position_ids", "scale"],
    ]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    plan = plan_merge(recipe(family["base"], family["math"]))
    with pytest.raises(OutputError, match=r"needs 2,400,\d+ bytes, 10 are free"):
        check_disk([(plan, tmp_path / "not" / "there")])
