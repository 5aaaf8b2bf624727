"""Models of the original LLaVA code alone: the result has its config from a folder of the hub's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from nan_merge import MergeRecipe
from nan_merge.errors import CheckpointError, IncompatibleError, OutputError
from nan_merge.llava_sizes import expected_shapes
from nan_merge.merge import merge_checkpoint
from nan_merge.naming import hub_names
from nan_merge.plan import plan_merge
from nan_merge.preflight import tensor_groups
from nan_merge.verify import verify_checkpoint
from tests.vlm_checkpoints import (
    EMBEDDINGS,
    HEAD,
    PADDED_ROWS,
    load_tensors,
    make_both_originals,
    original_name,
    vision_tokenizer,
    write_tensors,
)

LAMBDA = 0.4
TOWER = "vision_tower.vision_model."
Json = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_both_originals(tmp_path_factory.mktemp("originals"))


def recipe(place: Path, **more: Any) -> MergeRecipe:
    content = {
        "base": str(place / "base"),
        "models": [str(place / "a"), str(place / "b")],
        "method": "task_arithmetic",
        "coefficients": {"source": "uniform", "lambda": LAMBDA},
        "config": {"path": str(place / "config")},
        "modules": {"vision_tower": {"path": str(place / "clip")}},
    }
    return MergeRecipe.model_validate(content | more)


def reference(place: Path) -> dict[str, Tensor]:
    """Task arithmetic in float64 over the hub's copies; rows that no model has are means."""
    base, *models = (load_tensors(place / f"{name}-hub") for name in ("base", "a", "b"))
    merged = {
        name: own.double() + LAMBDA * sum(model[name].double() - own.double() for model in models)
        for name, own in base.items()
        if not name.startswith(TOWER)
    }
    for name in (EMBEDDINGS, HEAD):
        mean = base[name][:-1].double().mean(dim=0)
        filled = mean.expand(PADDED_ROWS - len(base[name]) + 1, -1)
        merged[name] = torch.cat([merged[name][:-1], filled])
    tower = load_tensors(place / "clip")
    return merged | {TOWER + n.removeprefix("vision_model."): t.double() for n, t in tower.items()}


def load(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def answer(folder: Path) -> list[int]:
    """Some tokens about a picture, by the folder's own processor and model."""
    from PIL import Image
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    picture = Image.new("RGB", (80, 60), "red")
    inputs = processor(text=prompt, images=picture, return_tensors="pt")
    options: Json = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    written = load(folder).generate(**inputs, **options)
    return written[0, inputs["input_ids"].shape[1] :].tolist()


def changed(place: Path, folder: Path, edit: Callable[[Json], object], name="config.json") -> str:
    """A copy of a folder with one of its tables changed."""
    shutil.copytree(place, folder)
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("version", ["1.5", "1.6"])
def test_originals_alone_make_a_folder_that_transformers_loads(made, tmp_path, version):
    wish, out = recipe(made / version), tmp_path / "out"
    merge_checkpoint(wish, out)
    found, expected = load_tensors(out), reference(made / version)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)
    image = json.loads((out / "config.json").read_text())["image_token_index"]
    tokens = answer(out)
    assert len(tokens) == 4 and all(token < image for token in tokens)
    verify_checkpoint(out)
    assert merge_checkpoint(wish, out).reused
    shutil.rmtree(out)
    assert merge_checkpoint(wish, out, workers=2).output == out
    assert all(torch.equal(load_tensors(out)[name], tensor) for name, tensor in found.items())


def test_one_model_alone_is_brought_into_the_hubs_layout(made, tmp_path):
    place = made / "1.6"
    wish = recipe(place, base=None, models=[str(place / "base")], method="passthrough",
                  modules={}, coefficients="uniform")  # fmt: skip
    merge_checkpoint(wish, tmp_path / "out")
    found, expected = load_tensors(tmp_path / "out"), load_tensors(place / "base-hub")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        rows = slice(0, -1) if name in (EMBEDDINGS, HEAD) else slice(None)
        assert torch.equal(tensor[: len(expected[name][rows])], expected[name][rows])
    load(tmp_path / "out")


def test_the_plan_lists_rows_that_no_model_has(made):
    groups = tensor_groups(plan_merge(recipe(made / "1.5")))
    fates = {group.pattern: group.fate for group in groups}
    padding = PADDED_ROWS - len(vision_tokenizer("<image>"))
    for name in (EMBEDDINGS, HEAD):
        assert fates[name] == (
            f"merged; rows matched by token; <image>, {padding} rows of padding, which no model "
            "has: the mean of the base's rows"
        )


def test_buffers_that_models_make_themselves_are_left_out_and_listed(made, tmp_path):
    names = ("base", "a", "b")
    for name in names:
        shutil.copytree(made / "1.5" / name, tmp_path / name)
        tensors = load_tensors(tmp_path / name)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
        write_tensors(tmp_path / name, tensors)
    place = made / "1.5"
    base, *models = (str(tmp_path / name) for name in names)
    wish = recipe(place, base=base, models=models)
    groups = {group.pattern: group.fate for group in tensor_groups(plan_merge(wish))}
    name = "language_model.model.layers.*.self_attn.rotary_emb.inv_freq"
    assert groups[name] == "left out: models make it themselves"
    merge_checkpoint(wish, tmp_path / "out")
    assert load_tensors(tmp_path / "out").keys() == reference(place).keys()


def test_a_tower_that_nobody_has_is_asked_for_by_its_name(made):
    with pytest.raises(IncompatibleError) as caught:
        plan_merge(recipe(made / "1.5", modules={}))
    path = "openai/clip-vit-large-patch14-336"
    assert str(caught.value).splitlines()[1:] == [
        f"  - no model holds a vision tower (their configs name {path}): say where one is with "
        f"`modules: {{vision_tower: {{path: {path}}}}}`"
    ]


def test_a_tower_that_only_a_model_has_can_be_taken_from_it(made, tmp_path):
    place = made / "1.6"
    tuned = [{"path": str(place / "base"), "name": "tuned"}]
    sides = {"base": str(place / "a"), "models": tuned}
    with pytest.raises(IncompatibleError, match=r"base \(.*/a\) has no vision_tower \(its config "
                       r"names openai.*`modules: \{vision_tower: tuned\}`\n"):  # fmt: skip
        plan_merge(recipe(place, **sides, modules={}))
    wish = recipe(place, **sides, modules={"vision_tower": "tuned"})
    merge_checkpoint(wish, tmp_path / "out")
    found, own = load_tensors(tmp_path / "out"), load_tensors(place / "base-hub")
    towers = [name for name in own if name.startswith(TOWER)]
    assert towers and all(torch.equal(found[name], own[name]) for name in towers)


def test_image_newline_and_config_must_be_of_one_version(made, tmp_path):
    old, new = made / "1.5", made / "1.6"
    with pytest.raises(IncompatibleError, match="image_newline is of LLaVA-1"):
        plan_merge(recipe(new, config={"path": str(old / "config")}))
    with pytest.raises(IncompatibleError, match=r"`modules: \{image_newline: NAME\}`"):
        plan_merge(recipe(old, config={"path": str(new / "config")}))
    newer = {"path": str(new / "a"), "name": "newer"}
    modules = {"vision_tower": {"path": str(old / "clip")}, "image_newline": "newer"}
    wish = recipe(old, models=[str(old / "a"), newer], modules=modules,
                  config={"path": str(new / "config")})  # fmt: skip
    merge_checkpoint(wish, tmp_path / "out")
    found = load_tensors(tmp_path / "out")
    assert torch.equal(found["image_newline"], load_tensors(new / "a-hub")["image_newline"])
    assert type(load(tmp_path / "out")).__name__ == "LlavaNextForConditionalGeneration"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["text_config"].update(intermediate_size=128),
         r"mlp\.down_proj\.weight \(.*base.*\) has shape \(64, 96\), the config asks for "
         r"\(64, 128\) \(and 1 more like it\)"),
        (lambda c: c["text_config"].update(num_hidden_layers=3),
         r"no model has language_model\.model\.layers\.2\.input_layernorm\.weight"),
        (lambda c: c["text_config"].update(num_hidden_layers=1),
         r"the config has no use for language_model\.model\.layers\.1\.\S+ \("),
        (lambda c: c["text_config"].update(num_attention_heads=4, num_key_value_heads=2,
                                           head_dim=16),
         r"base \(.*\) says num_attention_heads 2, the config 4"),
        (lambda c: c["text_config"].update(rms_norm_eps=1e-5), r"says rms_norm_eps 1e-06"),
        (lambda c: c["text_config"]["rope_parameters"].update(rope_theta=5e5), "says rope_theta"),
        (lambda c: c["text_config"]["rope_parameters"].update(rope_type="linear", factor=2.0),
         "says rope type default, the config linear"),
        (lambda c: c["text_config"].update(model_type="mistral", num_key_value_heads=1),
         "says model_type llama, the config mistral"),
        (lambda c: c.update(vision_feature_layer=-1), "says mm_vision_select_layer -2, the conf"),
        (lambda c: c.update(vision_feature_select_strategy="full"), "mm_vision_select_feature"),
        (lambda c: c.update(image_grid_pinpoints=[[56, 112]]), "image_grid_pinpoints"),
        (lambda c: c["vision_config"].update(hidden_act="gelu"), "clip.* says hidden_act quick"),
        (lambda c: c["vision_config"].update(image_size=112), r"position_embedding\.weight"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_describe_the_result_is_refused(made, tmp_path, edit, message):
    place = made / "1.6"
    path = changed(place / "config", tmp_path / "config", edit)
    with pytest.raises(IncompatibleError, match="would not fit the config of") as caught:
        plan_merge(recipe(place, config={"path": path}))
    assert caught.match(message)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("config.json", lambda c: c.update(model_type="qwen2_vl"), "it is of model_type qwen2_vl"),
        ("config.json", lambda c: c["text_config"].update(model_type="gemma"), "of type gemma; kn"),
        ("config.json", lambda c: c["text_config"].update(hidden_size=0), "its hidden_size is 0"),
        ("config.json", lambda c: c.update(image_token_index=7), "has <image> at"),
        ("config.json", lambda c: c["text_config"].update(vocab_size=300), "300 rows of embedd"),
        ("processor_config.json", lambda c: c.pop("image_processor"), "it has no image processor"),
        ("processor_config.json", lambda c: c.pop("patch_size"), "names no patch_size"),
    ],
)
def test_a_folder_that_cannot_give_a_config_is_refused(made, tmp_path, name, edit, message):
    path = changed(made / "1.5" / "config", tmp_path / "config", edit, name)
    with pytest.raises(CheckpointError, match=message) as caught:
        plan_merge(recipe(made / "1.5", config={"path": path}))
    assert caught.match("such as llava-hf/llava-1.5-13b-hf")


def test_folders_without_tokenizer_or_config_and_originals_give_no_config(made, tmp_path):
    place = made / "1.5"
    for name in ("config", "clip", "a"):
        shutil.copytree(place / name, tmp_path / name)
    (tmp_path / "config" / "tokenizer.json").unlink()
    (tmp_path / "clip" / "config.json").unlink()
    told = {
        "config": "it has no tokenizer",
        "clip": r"Cannot read .*clip/config\.json",
        "a": "it is itself in the format of the original LLaVA code",
        "nowhere": "`config`: No checkpoint at .* Give a folder with config.json, or",
    }
    for name, message in told.items():
        with pytest.raises(CheckpointError, match=message):
            plan_merge(recipe(place, config={"path": str(tmp_path / name)}))


def test_a_models_own_config_that_makes_no_sense_is_told_with_its_name(made, tmp_path):
    path = changed(made / "1.5" / "a", tmp_path / "a", lambda c: c.update(num_attention_heads=0))
    with pytest.raises(IncompatibleError, match=r"a \(.*\): its num_attention_heads is 0, expect"):
        plan_merge(recipe(made / "1.5", models=[path]))


def test_a_result_does_not_go_into_the_folder_of_its_config(made):
    with pytest.raises(OutputError, match="is, or holds, the input"):
        merge_checkpoint(recipe(made / "1.5"), made / "1.5" / "config")


def test_a_tokenizer_of_other_models_is_refused(made, tmp_path):
    folder = tmp_path / "config"
    shutil.copytree(made / "1.5" / "config", folder)
    tokenizer = vision_tokenizer("<image>")
    tokenizer.add_tokens(["other", "words"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(IncompatibleError, match="has the token 'other' and 1 more, which no model"):
        plan_merge(recipe(made / "1.5", config={"path": str(folder)}))


def test_a_tokenizer_beside_a_config_of_a_folder_is_refused(made):
    for tokenizer, name in (("union", "union"), (None, "null")):
        with pytest.raises(ValueError, match=f"tokenizer: {name} would do nothing: with `config"):
            recipe(made / "1.5", tokenizer=tokenizer)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_expected_shapes_are_those_of_transformers(kind, text):
    """Of configs that name next to nothing, so that defaults count too."""
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto import CONFIG_MAPPING

    few = {"num_hidden_layers": 2}
    own: Json = {
        "model_type": kind,
        "text_config": {"model_type": text, **few},
        "vision_config": {"model_type": "clip_vision_model", **few},
    }
    if text == "llama":  # what else may be set
        own["text_config"] |= {"attention_bias": True, "mlp_bias": True, "head_dim": 64}
        own |= {"vision_feature_layer": [-1, -2], "multimodal_projector_bias": False}
    expected = expected_shapes(own)
    with torch.device("meta"):
        config = CONFIG_MAPPING[kind](**json.loads(json.dumps(own)))
        model = AutoModelForImageTextToText.from_config(config)
    tensors = model.state_dict()
    names = hub_names(own, list(tensors))
    assert {names[name]: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    assert {original_name(name) for name in expected}
