"""Image towers and CLIPs of other forms give the embeddings that their own library gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evaluators.backends.clip import Clip, build_clip
from evaluators.backends.clip_architecture import describe_tower
from evaluators.backends.clip_checkpoints import (
    load_clip,
    load_image_tower,
    save_clip,
    save_image_tower,
)
from evaluators.backends.clip_sources import (
    compare_towers,
    known_config,
    open_source,
    pretrained_repository,
    write_clip,
    write_image_tower,
)
from evaluators.torchvision_repair import repair
from nan_merge.errors import CheckpointError, ConfigError

repair()
open_clip = pytest.importorskip("open_clip")

PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 16,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16, "projection_dim": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))


@pytest.fixture(scope="module")
def hf_clip(tmp_path_factory) -> Path:
    """A small CLIP of transformers with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16)
    folder = tmp_path_factory.mktemp("hf") / "clip"
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(hf_clip, tmp_path_factory) -> Path:
    """The same in open_clip's layout."""
    folder = tmp_path_factory.mktemp("open_clip")
    write_clip(open_source(str(hf_clip)), folder)
    return folder


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_a_clip_of_transformers_embeds_images_and_texts_alike(hf_clip, clip_folder):
    from transformers import CLIPModel

    theirs, ours = CLIPModel.from_pretrained(hf_clip).eval(), load_clip(clip_folder)
    tokens = ours.tokenize(["a photo of a cat.", "an abbey, seen from the river"])
    images = theirs.get_image_features(pixel_values=PIXELS)
    texts = theirs.get_text_features(input_ids=tokens)
    close(ours.model.encode_image(PIXELS), getattr(images, "pooler_output", images))
    close(ours.model.encode_text(tokens), getattr(texts, "pooler_output", texts))
    assert ours.model.logit_scale.item() == theirs.logit_scale.item()
    # open_clip itself opens what was written.
    again = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    close(again.encode_image(PIXELS), ours.model.encode_image(PIXELS))


@torch.no_grad()
def test_a_vision_tower_of_transformers_embeds_alike(clip_folder, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**VISION)
    bare, whole = CLIPVisionModel(config).eval(), CLIPVisionModelWithProjection(config).eval()
    for name, model in (("bare", bare), ("whole", whole)):
        model.save_pretrained(tmp_path / name)
        write_image_tower(open_source(str(tmp_path / name)), clip_folder, tmp_path / f"{name}-done")
    tower = load_image_tower(tmp_path / "whole-done")
    close(tower.visual(PIXELS), whole(pixel_values=PIXELS).image_embeds)
    # Without a projection of its own it gets that of the pretrained CLIP.
    projection = load_clip(clip_folder).model.visual.proj
    tower = load_image_tower(tmp_path / "bare-done")
    close(tower.visual(PIXELS), bare(pixel_values=PIXELS).pooler_output @ projection)


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> str:
    """The name of a small model that is registered with open_clip."""
    import json

    folder = tmp_path_factory.mktemp("configs")
    config = json.loads(
        Path("evaluators/open_clip_configs/nan-merge-mini.json").read_text(encoding="utf-8")
    )
    for name, quick in (("mini-for-test", False), ("mini-for-test-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps({**config, "quick_gelu": quick}))
    open_clip.add_model_config(folder)
    return "mini-for-test-quickgelu"


@pytest.fixture
def quick(known, tmp_path) -> Clip:
    clip = build_clip(known, seed=3)
    save_clip(clip, tmp_path / "clip")
    return clip


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "model.", "image_encoder.model."])
def test_state_dicts_of_open_clip_and_task_vectors(prefix, suffix, known, quick, tmp_path):
    tuned = build_clip(known, seed=4)
    tensors = {
        f"{prefix}{name}": tensor
        for name, tensor in tuned.model.state_dict().items()
        # task_vectors keeps all but the text transformer.
        if prefix == "" or not name.startswith("transformer.")
    }
    path = tmp_path / f"finetuned{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    source = open_source(str(path), known)
    compare_towers(source, quick.tower.model_config, "the clip")
    write_image_tower(source, tmp_path / "clip", tmp_path / "tower")
    tower = load_image_tower(tmp_path / "tower")
    assert torch.equal(tower.visual(PIXELS), tuned.model.encode_image(PIXELS))
    with pytest.raises(ConfigError, match=r"does not tell its architecture.*backbone"):
        open_source(str(path))


def test_a_pickled_module_is_refused_with_the_way_to_convert(quick, tmp_path):
    path = tmp_path / "finetuned.pt"
    torch.save(quick.model.visual, path)
    with pytest.raises(CheckpointError, match=r"asks for code to be run.*safetensors") as error:
        open_source(str(path), "ViT-B-32-quickgelu")
    assert "weights_only=False" in str(error.value)


def test_another_architecture_is_refused(known, quick, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"patch 8.*width 32.* but the CLIP is a .*width 96"):
        compare_towers(open_source(str(tmp_path / "other")), quick.tower.model_config, "the CLIP")
    save_image_tower(build_clip("nan-merge-mini", seed=0).tower, tmp_path / "tower")
    with pytest.raises(CheckpointError, match=r"GELU, but .*QuickGELU mismatch.*-quickgelu"):
        open_source(str(tmp_path / "tower"), known)


def test_pretrained_weights_by_name():
    assert pretrained_repository("./clip") is None
    found = {
        name: pretrained_repository(f"open_clip://{name}-quickgelu/openai")
        for name in ("ViT-B-32", "ViT-L-14")
    }
    assert found == {
        "ViT-B-32": "timm/vit_base_patch32_clip_224.openai",
        "ViT-L-14": "timm/vit_large_patch14_clip_224.openai",
    }
    with pytest.raises(ConfigError, match=r"mismatch.*open_clip://ViT-B-32-quickgelu/openai"):
        pretrained_repository("open_clip://ViT-B-32/openai")
    with pytest.raises(ConfigError, match=r"no weights 'opena1'.*did you mean 'openai'"):
        pretrained_repository("open_clip://ViT-B-32-quickgelu/opena1")
    with pytest.raises(ConfigError, match=r"no model 'ViT-B-32-quickgel'"):
        pretrained_repository("open_clip://ViT-B-32-quickgel/openai")


def test_the_towers_of_the_paper_are_built_as_transformers_says():
    from evaluators.backends.clip_architecture import open_clip_config

    base = {"model_type": "clip", "projection_dim": 512, "text_config": {}, "vision_config": {}}
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    sizes |= {"num_attention_heads": 16, "patch_size": 14}
    large = {**base, "projection_dim": 768, "vision_config": sizes}
    for name, config in (("ViT-B-32-quickgelu", base), ("ViT-L-14-quickgelu", large)):
        found = open_clip_config(config, "config.json")
        assert describe_tower(found) == describe_tower(known_config(name))
    assert describe_tower(known_config("ViT-B-32")) != describe_tower(
        known_config("ViT-B-32-quickgelu")
    )


def test_a_clip_without_a_text_tower_makes_no_heads(tmp_path):
    save_image_tower(build_clip("nan-merge-mini", seed=0).tower, tmp_path / "tower")
    with pytest.raises(CheckpointError, match="has no text tower"):
        write_clip(open_source(str(tmp_path / "tower")), tmp_path / "clip")
