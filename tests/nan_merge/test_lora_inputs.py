"""Which LoRA adapters can be merged, and which base they stand on."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from nan_merge.checkpoint import Checkpoint
from nan_merge.errors import CheckpointError
from nan_merge.lora import LoraTensor, open_adapter
from nan_merge.model_reference import open_model, split_reference
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from tests.lora_adapters import (
    WriteAdapter,
    draw,
    linear,
    read,
)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "only LoRA adapters can be merged, this is IA3"),
        ({"use_dora": True}, "a DoRA adapter is not W"),
        ({"bias": "all"}, "bias: all.*merge_and_unload"),
        ({"lora_bias": True}, "a LoRA with lora_bias"),
        ({"target_parameters": ["x"]}, "a LoRA with target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*changed the base"),
        ({"r": "many"}, "`r`, `lora_alpha` or a pattern"),
        ({"r": 3}, "do not fit rank 3"),
        ({"r": 0}, "rank 0 for h.0.linear, expected at least 1"),
        ({"rank_pattern": {"linear": -1}, "use_rslora": True}, "rank -1 for h.0.linear"),
        ({"alpha_pattern": {"(": 1}}, r"adapter_config.json: .\(. is no regular expression"),
    ],
)
def test_what_is_not_w_plus_s_b_a_is_refused(
    base: Checkpoint, write_adapter: WriteAdapter, config: dict[str, Any], message: str
):
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write_adapter(linear(), **config), base, "tuned")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"h.0.linear.lora_magnitude_vector": draw(9)}, "not W . s·B·A"),
        ({"h.0.base_layer.linear.lora_A.weight": draw(2, 7)}, "of the PEFT that trained it"),
        ({"h.0.linear.lora_A.weight": draw(2, 7)}, "only one of lora_A and lora_B"),
        (linear("h.9.linear"), r"1 of 1 tensors .* lacks: h.9.linear.weight"),
        (linear() | {"score.weight": draw(2, 2)}, r"1 of 2 tensors .* lacks: score.weight"),
        (linear(outputs=8), r"lora_B \(8, 2\).*shape \(9, 7\)"),
        (
            linear() | {"h.0.linear.lora_A.other.weight": draw(2, 7)},
            "holds two tensors for h.0.linear",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(
    base: Checkpoint, write_adapter: WriteAdapter, tensors: dict[str, Tensor], message: str
):
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write_adapter(tensors), base, "tuned")


def test_a_plus_joins_base_and_adapter_unless_the_folder_has_it_in_its_name(tmp_path: Path):
    assert split_reference("org/model@main+adapter") == ("org/model@main", "adapter")
    assert split_reference("org/model") == ("org/model", None)
    assert split_reference("a" * 300 + "+b") == ("a" * 300, "b")
    (tmp_path / "a+b").mkdir()
    assert split_reference(str(tmp_path / "a+b")) == (str(tmp_path / "a+b"), None)


def test_a_joined_reference_shares_the_recipes_base(base: Checkpoint, write_adapter: WriteAdapter):
    folder = write_adapter(linear())
    opened = open_model(f"{base.folder}+{folder}", "tuned", base)
    assert opened.tensors["head.weight"] is base.tensors["head.weight"]
    second = write_adapter(linear(), "second")
    twice = open_model(f"{base.folder}+{folder}+{second}", "both", base)
    tensor = twice.tensors["h.0.linear.weight"]
    assert isinstance(tensor, LoraTensor)
    assert isinstance(tensor.base, LoraTensor)
    read(twice, "h.0.linear.weight")


@pytest.mark.parametrize("named", ["../base", "somewhere/base", None])
def test_an_adapter_alone_finds_its_base(
    base: Checkpoint, write_adapter: WriteAdapter, named: str | None
):
    folder = write_adapter(linear(), base_model_name_or_path=named)
    opened = open_model(str(folder), "tuned", base)
    assert opened.tensors["head.weight"] is base.tensors["head.weight"]


def test_an_adapter_whose_base_is_lost_stands_on_the_recipes(
    base: Checkpoint, write_adapter: WriteAdapter, caplog: pytest.LogCaptureFixture
):
    folder = write_adapter(linear(), base_model_name_or_path="/gone/llama")
    assert open_model(str(folder), "tuned", base).name == "tuned"
    assert "/gone/llama" in caplog.text
    with pytest.raises(CheckpointError, match=r"base /gone/llama.*BASE\+ADAPTER"):
        open_model(str(folder), "tuned")


def test_two_adapters_are_planned_on_their_base(base: Checkpoint, write_adapter: WriteAdapter):
    folders = [write_adapter(linear(), f"a{i}") for i in range(2)]
    models = [f"{base.folder}+{folder}" for folder in folders]
    spec = {"base": str(base.folder), "models": models, "method": "task_arithmetic"}
    plan = plan_merge(MergeRecipe.model_validate(spec))
    assert [model.name for model in plan.models] == ["a0", "a1"]
    assert plan.side_folder == base.folder
    spec = {"models": models, "method": "average"}
    plan = plan_merge(MergeRecipe.model_validate(spec))
    assert plan.side_folder == base.folder


def test_an_adapters_scale_is_part_of_its_fingerprint(
    base: Checkpoint, write_adapter: WriteAdapter
):
    from nan_merge.fingerprint import fingerprint

    factors = linear()
    adapters = [write_adapter(factors, f"a{alpha}", lora_alpha=alpha) for alpha in (1, 2)]
    one, two = (fingerprint(open_adapter(folder, base, "tuned")) for folder in adapters)
    assert one != two
