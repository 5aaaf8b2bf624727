"""What a LoRA adapter on its base is: W + s·B·A."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nan_merge import lora_tensor
from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.dtypes import DType
from nan_merge.lora import LoraTensor, open_adapter
from nan_merge.lora_tensor import lora_inner_products
from nan_merge.model_reference import open_model
from nan_merge.safetensors_file import BlockReader
from tests.lora_adapters import (
    WriteAdapter,
    assert_is_base_plus,
    draw,
    linear,
    read,
)


def test_a_linear_module_is_w_plus_s_b_a(base: Checkpoint, write_adapter: WriteAdapter):
    factors = linear()
    adapted = open_adapter(write_adapter(factors), base, "tuned")
    a, b = (value.double() for value in factors.values())
    assert_is_base_plus(adapted, base, "h.0.linear.weight", 6 / 2 * b @ a)
    assert adapted.tensors["h.0.linear.bias"] is base.tensors["h.0.linear.bias"]
    assert list(adapted.tensors) == list(base.tensors)


def test_names_with_the_adapters_name_in_them(base: Checkpoint, write_adapter: WriteAdapter):
    a, b = draw(2, 7), draw(9, 2)
    tensors = {"h.0.linear.lora_A.default.weight": a, "h.0.linear.lora_B.default.weight": b}
    adapted = open_adapter(write_adapter(tensors), base, "tuned")
    assert_is_base_plus(adapted, base, "h.0.linear.weight", 3 * b.double() @ a.double())


def test_a_pickled_adapter_is_converted(base: Checkpoint, write_adapter: WriteAdapter):
    folder = write_adapter(linear())
    stored = folder / "adapter_model.safetensors"
    torch.save(load_file(stored), folder / "adapter_model.bin")
    before = read(open_adapter(folder, base, "tuned"), "h.0.linear.weight")
    stored.unlink()
    assert torch.equal(read(open_adapter(folder, base, "tuned"), "h.0.linear.weight"), before)


def test_rank_stabilised_scale_and_patterns(base: Checkpoint, write_adapter: WriteAdapter):
    factors = linear() | linear("h.0.square", 6, 6, rank=4)
    more = {"use_rslora": True, "rank_pattern": {r"h\.\d+\.square": 4}}
    folder = write_adapter(factors, alpha_pattern={"square": 10}, **more)
    adapted = open_adapter(folder, base, "tuned")
    scales = {n: t.scale for n, t in adapted.tensors.items() if isinstance(t, LoraTensor)}
    assert scales == {
        "h.0.linear.weight": 6 / math.sqrt(2),
        "h.0.square.weight": 10 / math.sqrt(4),
    }


def test_an_embedding_is_transposed(base: Checkpoint, write_adapter: WriteAdapter):
    a, b = draw(2, 13), draw(6, 2)
    tensors = {"embed.lora_embedding_A": a, "embed.lora_embedding_B": b}
    adapted = open_adapter(write_adapter(tensors), base, "tuned")
    assert_is_base_plus(adapted, base, "embed.weight", 3 * (b.double() @ a.double()).T)


@pytest.mark.parametrize(("module", "inputs", "outputs"), [("conv1d", 5, 8), ("square", 6, 6)])
def test_fan_in_fan_out_is_transposed(
    base: Checkpoint, write_adapter: WriteAdapter, module: str, inputs: int, outputs: int
):
    factors = linear(f"h.0.{module}", outputs, inputs)
    adapted = open_adapter(write_adapter(factors, fan_in_fan_out=True), base, "tuned")
    a, b = (value.double() for value in factors.values())
    assert_is_base_plus(adapted, base, f"h.0.{module}.weight", 3 * (b @ a).T)


def test_a_convolution(base: Checkpoint, write_adapter: WriteAdapter):
    a, b = draw(2, 3, 2, 2), draw(4, 2, 1, 1)
    tensors = {"h.0.conv.lora_A.weight": a, "h.0.conv.lora_B.weight": b}
    adapted = open_adapter(write_adapter(tensors), base, "tuned")
    update = torch.einsum("or,rikl->oikl", b.double()[:, :, 0, 0], a.double())
    assert_is_base_plus(adapted, base, "h.0.conv.weight", 3 * update)


@pytest.mark.parametrize("key", ["head.weight", "head.modules_to_save.default.weight"])
def test_a_fully_trained_module_replaces_the_bases(
    base: Checkpoint, write_adapter: WriteAdapter, key: str
):
    trained = draw(13, 6)
    folder = write_adapter({**linear(), key: trained}, modules_to_save=["head"])
    assert torch.equal(read(open_adapter(folder, base, "tuned"), "head.weight"), trained)


def test_an_adapter_may_act_on_a_replaced_embedding(base: Checkpoint, write_adapter: WriteAdapter):
    table, a, b = draw(13, 6), draw(2, 13), draw(6, 2)
    tensors = {"embed.base_layer.weight": table, "embed.lora_embedding_A": a}
    folder = write_adapter({**tensors, "embed.lora_embedding_B": b})
    found = read(open_adapter(folder, base, "tuned"), "embed.weight").double()
    expected = table.double() + 3 * (b.double() @ a.double()).T
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=3e-6)


def test_half_precision_does_not_round_the_update_away(tmp_path: Path, write_adapter: WriteAdapter):
    save_file({"w.weight": torch.ones(4, 4, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    factors = {"w.lora_A.weight": torch.full((2, 4), 1e-3), "w.lora_B.weight": torch.ones(4, 2)}
    half = {name: value.bfloat16() for name, value in factors.items()}
    base = open_checkpoint(str(tmp_path / "b.safetensors"))
    tensor = open_adapter(write_adapter(half), base, "tuned").tensors["w.weight"]
    assert (tensor.dtype, tensor.stored_dtype) == (DType.F32, DType.BF16)
    assert tensor.num_bytes == 64
    with BlockReader() as reader:
        assert reader.read(tensor)[0].item() == pytest.approx(1.006, rel=1e-3)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize("module", ["linear", "conv1d"])
def test_any_division_into_reads_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, data: st.DataObject
):
    monkeypatch.setattr(lora_tensor, "PRODUCT_ELEMENTS", 1 << 10)
    folder = tmp_path / module
    if not folder.exists():
        torch.manual_seed(5)
        folder.mkdir()
        save_file({f"{module}.weight": draw(77, 131)}, folder / "model.safetensors")
        sizes = (77, 131) if module == "linear" else (131, 77)
        keyed = {f"base_model.model.{k}": v for k, v in linear(module, *sizes).items()}
        save_file(keyed, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(
            '{"peft_type": "LORA", "r": 2, "lora_alpha": 7}'
        )
    base = open_checkpoint(str(folder / "model.safetensors"))
    tensor = open_adapter(folder, base, "tuned").tensors[f"{module}.weight"]
    size = tensor.num_elements
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=8)))
    with BlockReader() as reader, BlockReader() as other:
        whole = reader.read(tensor)
        pieces = [
            other.read(tensor, start, end - start)
            for start, end in zip([0, *cuts], [*cuts, size], strict=True)
        ]
    assert torch.equal(torch.cat(pieces).view(torch.int32), whole.view(torch.int32))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_grid_and_not_the_read_decides_what_is_multiplied(
    tmp_path: Path, write_adapter: WriteAdapter, num_threads: int
):
    torch.manual_seed(11)
    save_file({"w.weight": draw(700, 515).bfloat16()}, tmp_path / "b.safetensors")
    base = open_checkpoint(str(tmp_path / "b.safetensors"))
    folder = write_adapter(linear("w", 700, 515, rank=8), r=8)
    tensor = open_adapter(folder, base, "tuned").tensors["w.weight"]
    before = torch.get_num_threads()
    with BlockReader() as reader:
        whole = reader.read(tensor)
    try:
        torch.set_num_threads(num_threads)
        for block in (1 << 16, 99_991, 1 << 18):
            with BlockReader() as reader:
                for start in reversed(range(0, tensor.num_elements, block)):
                    count = min(block, tensor.num_elements - start)
                    piece = reader.read(tensor, start, count)
                    assert torch.equal(piece, whole[start : start + count])
    finally:
        torch.set_num_threads(before)


def test_norms_equal_those_of_the_formed_products(base: Checkpoint, write_adapter: WriteAdapter):
    for name, module, shape, turned in (
        ("h.0.linear.weight", "h.0.linear", (9, 7), False),
        ("h.0.conv1d.weight", "h.0.conv1d", (8, 5), True),
    ):
        adapters = [
            open_adapter(write_adapter(linear(module, *shape), f"{module}{i}"), base, f"a{i}")
            for i in range(2)
        ]
        tensors = [*(adapted.tensors[name] for adapted in adapters), base.tensors[name]]
        with BlockReader() as reader:
            found = lora_inner_products(reader, base.tensors[name], tensors)
            vectors = []
            for tensor in tensors[:2]:
                assert isinstance(tensor, LoraTensor)
                assert tensor.fan_in_fan_out == turned
                a = reader.read(tensor.a).view(tensor.a.shape).double()
                b = reader.read(tensor.b).view(tensor.b.shape).double()
                vectors.append((3 * b @ a).flatten())
        vectors = torch.stack([*vectors, torch.zeros_like(vectors[0])])
        assert found is not None
        products = torch.tensor(found.task_vectors, dtype=torch.float64)
        torch.testing.assert_close(products, vectors @ vectors.T)
        sums = torch.tensor(found.task_vector_sums, dtype=torch.float64)
        torch.testing.assert_close(sums, vectors.sum(dim=1))


def test_norms_of_other_tensors_must_be_read(base: Checkpoint, write_adapter: WriteAdapter):
    name = "h.0.linear.weight"
    adapted = open_adapter(write_adapter(linear()), base, "tuned")
    other = open_adapter(write_adapter({"head.weight": draw(13, 6)}, "other"), base, "other")
    with BlockReader() as reader:
        head, embed = base.tensors["head.weight"], base.tensors["embed.weight"]
        assert lora_inner_products(reader, other.tensors["head.weight"], [head]) is None
        assert lora_inner_products(reader, embed, [adapted.tensors[name]]) is None
        assert lora_inner_products(reader, head, [head]) is None  # no adapter: nothing to save


def test_a_prefix_more_or_less_is_found(base: Checkpoint, write_adapter: WriteAdapter):
    more = open_adapter(write_adapter(linear("transformer.h.0.linear"), "more"), base, "more")
    less = open_adapter(write_adapter(linear("0.linear"), "less"), base, "less")
    for adapted in (more, less):
        assert isinstance(adapted.tensors["h.0.linear.weight"], LoraTensor)


def test_merged_weights_equal_pefts(tmp_path: Path):
    peft = pytest.importorskip("peft")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(1)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(33, 12)
            self.linear = torch.nn.Linear(12, 20)
            self.conv1d = conv1d(12, 20)
            self.square = torch.nn.Linear(12, 12)
            self.conv = torch.nn.Conv2d(3, 5, 2)
            self.head = torch.nn.Linear(12, 33, bias=False)

    for turned, names in (
        (False, ["embed", "linear", "square", "conv"]),
        (True, ["conv1d", "embed"]),
    ):
        net = Net()
        folder = tmp_path / str(turned)
        folder.mkdir()
        save_file(net.state_dict(), folder / "model.safetensors")
        config = peft.LoraConfig(
            r=4, lora_alpha=9, target_modules=names, use_rslora=turned, fan_in_fan_out=turned,
            modules_to_save=["head"], rank_pattern={names[1]: 2}, alpha_pattern={names[0]: 5},
        )  # fmt: skip
        adapted = peft.get_peft_model(net, config)
        for name, value in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.data = torch.randn_like(value) / 4
        adapted.save_pretrained(folder / "adapter")
        ours = open_model(f"{folder}+{folder / 'adapter'}", "ours")
        theirs = adapted.merge_and_unload().state_dict()
        assert ours.tensors.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(read(ours, name), value, rtol=2e-6, atol=2e-6)
        changed = [n for n, v in load_file(folder / "model.safetensors").items()
                   if not torch.equal(v, theirs[n])]  # fmt: skip
        assert len(changed) >= len(names)
