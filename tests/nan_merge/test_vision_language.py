"""Vision-language models: all namings are merged as one; parts are taken from where one says."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from nan_merge import MergeRecipe
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.merge import merge_checkpoint
from nan_merge.plan import plan_merge
from nan_merge.preflight import tensor_groups
from tests.vlm_checkpoints import (
    as_original,
    finetuned,
    load_tensors,
    make_tiny_gemma,
    make_tiny_internvl,
    make_tiny_llava,
    make_tiny_qwen,
    make_tiny_qwen3,
    memory_name,
    rename_tensors,
    vision_tokenizer,
    write_tensors,
)

LAMBDA = 0.4
TOWER = "vision_tower."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-1.5, LLaVA-NeXT of it (tied and not), each once."""
    folder = tmp_path_factory.mktemp("made")
    make_tiny_llava(folder / "llava")
    make_tiny_llava(folder / "next", next_version=True)
    make_tiny_llava(folder / "tied", next_version=True, tied=True)
    return folder


def recipe(base: Path, models: Sequence[Path], **more: Any) -> MergeRecipe:
    content = {
        "base": str(base),
        "models": [str(model) for model in models],
        "method": "task_arithmetic",
        "coefficients": {"source": "uniform", "lambda": LAMBDA},
        **more,
    }
    return MergeRecipe.model_validate(content)


def reference(base: dict[str, Tensor], models: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Task arithmetic in float64; a model that lacks a tensor has not changed it."""
    return {
        name: own.double()
        + LAMBDA * sum(model.get(name, own).double() - own.double() for model in models)
        for name, own in base.items()
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)


def load(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    return model


def fates(recipe: MergeRecipe) -> dict[str, str]:
    return {group.pattern: group.fate for group in tensor_groups(plan_merge(recipe))}


def test_three_namings_of_llava_are_merged_as_one_and_written_in_the_hubs(made, tmp_path):
    base = made / "llava"
    own, other = (finetuned(base, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
    expected = reference(load_tensors(base), [load_tensors(own), load_tensors(other)])
    as_original(own)
    rename_tensors(other, memory_name)
    merge_checkpoint(recipe(base, [own, other]), tmp_path / "out")
    found = load_tensors(tmp_path / "out")
    assert_close(found, expected)
    model = load(tmp_path / "out")
    head = found["language_model.lm_head.weight"]
    torch.testing.assert_close(model.lm_head.weight, head)


def test_a_base_in_the_naming_of_transformers_5_gives_the_hubs(made, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(made / "llava", base)
    rename_tensors(base, memory_name)
    own = finetuned(made / "llava", tmp_path / "a", 1)
    merge_checkpoint(recipe(base, [own]), tmp_path / "out")
    tensors = load_tensors(made / "llava")
    assert_close(load_tensors(tmp_path / "out"), reference(tensors, [load_tensors(own)]))


def test_a_missing_vision_tower_is_named_once_with_what_to_say(made, tmp_path):
    base = made / "llava"
    own = as_original(finetuned(base, tmp_path / "a", 1), tower=False)
    with pytest.raises(IncompatibleError) as caught:
        plan_merge(recipe(base, [own]))
    assert str(caught.value).splitlines()[1] == (
        f"  - a ({own}) has no vision_tower (its config names openai/clip-vit-large-patch14-336). "
        "Say whose the result shall have, e.g. `modules: {vision_tower: base}`, or let this model "
        "count as not having changed the base's with `missing: base`"
    )


def test_a_tower_is_taken_from_the_base_bit_by_bit(made, tmp_path):
    base = made / "llava"
    own = as_original(finetuned(base, tmp_path / "a", 1), tower=False)
    other = finetuned(base, tmp_path / "b", 2)  # its tower is another, and is left alone
    tuned = [finetuned(base, tmp_path / "a2", 1), other]
    expected = reference(load_tensors(base), [load_tensors(each) for each in tuned])
    wish = recipe(base, [own, other], modules={"vision_tower": "base"})
    merge_checkpoint(wish, tmp_path / "out")
    found, before = load_tensors(tmp_path / "out"), load_tensors(base)
    for name in found:
        if name.startswith(TOWER):
            assert torch.equal(found[name], before[name])
            expected[name] = before[name].double()
    assert_close(found, expected)
    fate = fates(wish)
    towers = {fate[pattern] for pattern in fate if pattern.startswith(TOWER)}
    assert towers == {"taken from base (`modules`)"}
    assert merge_checkpoint(wish, tmp_path / "out").reused


def test_coefficients_are_made_without_what_is_taken(made, tmp_path):
    base = made / "llava"
    own, other = (finetuned(base, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
    tensors = load_tensors(own)
    write_tensors(own, {n: 9 * t if n.startswith(TOWER) else t for n, t in tensors.items()})
    nan = {"coefficients": {"source": "nan", "target": "weights"}}
    taken = recipe(base, [own, other], modules={"vision_tower": "base"}, **nan)
    merge_checkpoint(taken, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    norms = [
        sum(float(t.double().square().sum()) for n, t in load_tensors(folder).items()
            if not n.startswith(TOWER)) ** 0.5
        for folder in (own, other)
    ]  # fmt: skip
    inverse = [1 / norm for norm in norms]
    assert manifest["alpha"]["a"] == pytest.approx(inverse[0] / sum(inverse), rel=1e-6)


def test_a_tower_is_taken_from_clip_in_the_type_that_is_asked_for(made, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from tests.vlm_checkpoints import TOWER_SIZES

    base = made / "llava"
    torch.manual_seed(5)
    CLIPVisionModel(CLIPVisionConfig(**TOWER_SIZES)).save_pretrained(tmp_path / "clip")
    models = [
        as_original(finetuned(base, tmp_path / name, seed), tower=False)
        for name, seed in (("a", 1), ("b", 2))
    ]
    clip = {"vision_tower": {"path": str(tmp_path / "clip")}}
    merge_checkpoint(recipe(base, models, modules=clip, dtype="bfloat16"), tmp_path / "out")
    found, tower = load_tensors(tmp_path / "out"), load_tensors(tmp_path / "clip")
    assert len(tower) > 10
    for name, tensor in tower.items():
        own = found[TOWER + "vision_model." + name.removeprefix("vision_model.")]
        assert torch.equal(own, tensor.bfloat16())
    load(tmp_path / "out")


def test_a_place_with_another_tower_is_refused(made, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from tests.vlm_checkpoints import TOWER_SIZES

    sizes = {**TOWER_SIZES, "intermediate_size": 128}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(tmp_path / "clip")
    own = finetuned(made / "llava", tmp_path / "a", 1)
    clip = {"vision_tower": {"path": str(tmp_path / "clip")}}
    with pytest.raises(IncompatibleError, match=r"mlp\.fc1\.bias of .*clip has shape \(128,\)"):
        plan_merge(recipe(made / "llava", [own], modules=clip))


def test_image_newline_is_left_out_of_a_llava_15_and_the_plan_says_so(made, tmp_path):
    base, newer = made / "llava", made / "next"
    with pytest.raises(IncompatibleError, match="next has a tensor that base lacks: image_newline"):
        plan_merge(recipe(base, [newer]))
    wish = recipe(base, [newer], missing={"image_newline": "base"})
    assert fates(wish)["image_newline"] == "left out (`missing`): only in next"
    merge_checkpoint(wish, tmp_path / "out")
    expected = reference(load_tensors(base), [load_tensors(newer)])
    assert_close(load_tensors(tmp_path / "out"), expected)


def test_a_result_in_the_form_of_llava_next_takes_its_config_and_image_newline(made, tmp_path):
    base, newer = made / "llava", made / "next"
    with pytest.raises(IncompatibleError, match=r"`modules: \{image_newline: next\}`"):
        plan_merge(recipe(base, [newer], config="next", missing={"image_newline": "base"}))
    wish = recipe(base, [newer], config="next", modules={"image_newline": "next"})
    merge_checkpoint(wish, tmp_path / "out")
    assert type(load(tmp_path / "out")).__name__ == "LlavaNextForConditionalGeneration"
    found = load_tensors(tmp_path / "out")
    assert torch.equal(found["image_newline"], load_tensors(newer)["image_newline"])


def test_a_config_of_the_original_code_is_refused_with_what_to_say(made, tmp_path):
    base = as_original(finetuned(made / "llava", tmp_path / "base", 1))
    own = finetuned(made / "llava", tmp_path / "a", 2)
    with pytest.raises(IncompatibleError, match=r"neither transformers nor vLLM.*config: NAME"):
        plan_merge(recipe(base, [own]))
    merge_checkpoint(recipe(base, [own], config="a"), tmp_path / "out")
    load(tmp_path / "out")


def test_a_head_whose_tie_the_config_hides_stays_tied(made, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(made / "tied", base)
    config = json.loads((base / "config.json").read_text())
    config.pop("tie_word_embeddings", None)  # as LLaVA-NeXT's config leaves it out
    assert config["text_config"]["tie_word_embeddings"] is True
    (base / "config.json").write_text(json.dumps(config))
    own = finetuned(base, tmp_path / "a", 1)
    merge_checkpoint(recipe(base, [own]), tmp_path / "out")
    model = load(tmp_path / "out")
    embeddings = load_tensors(tmp_path / "out")["language_model.model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, embeddings)


def test_a_language_model_of_its_own_is_merged_into_the_language_model(made, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    base = made / "llava"
    config = json.loads((base / "config.json").read_text())["text_config"]
    text = LlamaForCausalLM(LlamaConfig(**config))
    text.save_pretrained(tmp_path / "text")
    vision_tokenizer("<image>").save_pretrained(tmp_path / "text")
    with pytest.raises(
        IncompatibleError, match=r"has no projector and no vision_tower\. Say whose"
    ):
        plan_merge(recipe(base, [tmp_path / "text"]))
    wish = recipe(base, [tmp_path / "text"], modules={"projector": "base", "vision_tower": "base"})
    merge_checkpoint(wish, tmp_path / "out")
    renamed = {f"language_model.{name}": t for name, t in load_tensors(tmp_path / "text").items()}
    assert "language_model.model.layers.1.mlp.up_proj.weight" in renamed
    expected = reference(load_tensors(base), [renamed])
    assert_close(load_tensors(tmp_path / "out"), expected)
    load(tmp_path / "out")


def test_rows_of_a_smaller_vocabulary_are_matched_by_token(made, tmp_path):
    """The original LLaVA has no token for an image; the hub's has one more row."""
    base = made / "llava"
    own = finetuned(base, tmp_path / "a", 1)
    whole = load_tensors(own)
    expected = reference(load_tensors(base), [whole])
    names = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    cut = {n: t[:-1] if n in names else t for n, t in whole.items()}
    write_tensors(own, cut)
    as_original(own)
    vision_tokenizer().save_pretrained(own)
    config = json.loads((own / "config.json").read_text())
    config["vocab_size"] -= 1
    (own / "config.json").write_text(json.dumps(config))
    for name in names:
        expected[name][-1] = load_tensors(base)[name][-1].double()
    merge_checkpoint(recipe(base, [own]), tmp_path / "out")
    assert_close(load_tensors(tmp_path / "out"), expected)


@pytest.mark.parametrize("make", [make_tiny_qwen, make_tiny_gemma, make_tiny_internvl])
def test_other_families_are_merged_from_two_namings_and_load(tmp_path, make):
    base = make(tmp_path / "base")
    own, other = (finetuned(base, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
    expected = reference(load_tensors(base), [load_tensors(own), load_tensors(other)])
    from transformers import AutoModelForImageTextToText

    loaded = AutoModelForImageTextToText.from_pretrained(other)
    loaded.save_pretrained(other, save_original_format=False)
    assert load_tensors(other).keys() != expected.keys()
    merge_checkpoint(recipe(base, [own, other]), tmp_path / "out")
    assert_close(load_tensors(tmp_path / "out"), expected)
    load(tmp_path / "out")


def test_qwen3_vl_is_merged_from_two_namings_and_loads(tmp_path):
    """transformers 5 saves it under one; the other is that of Qwen2-VL's tower."""
    base = make_tiny_qwen3(tmp_path / "base")
    own, other = (finetuned(base, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2)))
    expected = reference(load_tensors(base), [load_tensors(own), load_tensors(other)])
    rename_tensors(other, lambda name: name.removeprefix("model.") if "visual" in name else name)
    assert load_tensors(other).keys() != expected.keys()
    merge_checkpoint(recipe(base, [own, other]), tmp_path / "out")
    assert_close(load_tensors(tmp_path / "out"), expected)
    assert type(load(tmp_path / "out")).__name__ == "Qwen3VLForConditionalGeneration"
    fate = fates(recipe(base, [own], modules={"vision_tower": "a", "language_model": "merge"}))
    assert fate["model.visual.blocks.*.norm*.weight"] == "taken from a (`modules`)"
    assert fate["model.visual.deepstack_merger_list.*.norm.weight"] == "merged"
    assert fate["model.language_model.layers.*.mlp.up_proj.weight"] == "merged"


def test_modules_of_qwen_are_told_apart(tmp_path):
    base = make_tiny_qwen(tmp_path / "base")
    own = finetuned(base, tmp_path / "a", 1)
    fate = fates(recipe(base, [own], modules={"vision_tower": "a", "language_model": "merge"}))
    assert fate["visual.blocks.*.norm*.weight"] == "taken from a (`modules`)"
    assert fate["visual.merger.ln_q.weight"] == "merged"
    assert fate["model.layers.*.mlp.up_proj.weight"] == "merged"


def test_two_names_of_one_tensor_are_refused(made, tmp_path):
    folder = finetuned(made / "llava", tmp_path / "a", 1)
    tensors = load_tensors(folder)
    twice = {"lm_head.weight": tensors["language_model.lm_head.weight"]}
    write_tensors(folder, tensors | twice)
    with pytest.raises(CheckpointError, match=r"are both language_model\.lm_head\.weight"):
        plan_merge(recipe(made / "llava", [folder]))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"vision_tower": "nobody"}, "'nobody' is none of `merge`, `base`, `a`; for a folder"),
        ({"tower": "base"}, "`modules`: tower fits no tensor of any model"),
    ],
)
def test_modules_that_mean_nothing_are_refused(made, tmp_path, modules, message):
    own = finetuned(made / "llava", tmp_path / "a", 1)
    with pytest.raises((ValueError, IncompatibleError), match=message):
        plan_merge(recipe(made / "llava", [own], modules=modules))
