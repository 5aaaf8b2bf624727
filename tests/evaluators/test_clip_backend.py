import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluators.backends.clip import (
    build_clip,
    classify,
    fit_images,
    normalise_pixels,
    zero_shot_head,
)
from evaluators.backends.clip_checkpoints import (
    load_clip,
    load_image_tower,
    save_clip,
    save_image_tower,
)
from evaluators.torchvision_repair import repair
from nan_merge.errors import CheckpointError, ConfigError, EvaluationError

repair()
open_clip = pytest.importorskip("open_clip")

CLASS_NAMES = ("cat", "dog", "bird")
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.")
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip():
    return build_clip("nan-merge-mini", seed=0)


@pytest.fixture
def tower_folder(clip, tmp_path):
    save_image_tower(clip.tower, tmp_path / "tower")
    return tmp_path / "tower"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_seed_decides_the_weights_and_leaves_the_global_state(clip):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again, other = build_clip("nan-merge-mini", seed=0), build_clip("nan-merge-mini", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(again.model.visual.proj, clip.model.visual.proj)
    assert not torch.equal(other.model.visual.proj, clip.model.visual.proj)


def test_model_is_known_to_open_clip_afterwards(clip):
    assert "nan-merge-mini" in open_clip.list_models()
    assert clip.tokenize(["a cat."]).shape == (1, 16)


def test_unknown_model_is_an_error():
    with pytest.raises(ConfigError, match="no-such-model"):
        build_clip("no-such-model", seed=0)


def test_a_config_file_wins_over_a_model_of_the_same_name(clip, tmp_path):
    config = {**clip.tower.model_config, "embed_dim": 24}
    (tmp_path / "ViT-B-32.json").write_text(json.dumps(config))
    assert build_clip(tmp_path / "ViT-B-32.json", seed=0).model.visual.proj.shape == (96, 24)


def test_a_damaged_model_config_is_named(tmp_path):
    (tmp_path / "broken.json").write_text('{"embed_dim": 24}')
    with pytest.raises(ConfigError, match="broken"):
        build_clip(tmp_path / "broken.json", seed=0)


def test_head_equals_open_clips_own(clip):
    theirs = open_clip.build_zero_shot_classifier(clip.model, clip.tokenize, CLASS_NAMES, TEMPLATES)
    ours = zero_shot_head(clip, CLASS_NAMES, TEMPLATES)
    scale = clip.model.logit_scale.exp()
    torch.testing.assert_close(ours, (scale * theirs.T).detach(), rtol=1e-5, atol=1e-5)


def test_classify_equals_clip_called_by_hand(clip):
    head = zero_shot_head(clip, CLASS_NAMES, TEMPLATES)
    predicted, log_probability = classify(clip.tower, head, IMAGES, batch_size=3)
    pixels = normalise_pixels(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), clip.tower)
    with torch.no_grad():
        features = clip.model.encode_image(pixels, normalize=True)
    expected = (features @ head.T).log_softmax(dim=1)
    torch.testing.assert_close(torch.from_numpy(log_probability), expected, rtol=1e-4, atol=1e-5)
    assert predicted.dtype == np.int64 and predicted.tolist() == expected.argmax(dim=1).tolist()


@pytest.mark.parametrize("shape", [(32, 32), (48, 64), (50, 40), (20, 33)])
def test_pixels_equal_open_clips_preprocessing(clip, shape):
    from PIL import Image

    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = open_clip.image_transform(
        32, is_train=False, mean=clip.tower.mean, std=clip.tower.std
    )(Image.fromarray(image))
    fitted = torch.from_numpy(fit_images(image[None], 32)).permute(0, 3, 1, 2)
    torch.testing.assert_close(normalise_pixels(fitted, clip.tower)[0], theirs)


def test_classify_refuses_weights_that_are_not_finite(clip):
    head = zero_shot_head(clip, CLASS_NAMES, TEMPLATES) * float("nan")
    with pytest.raises(EvaluationError, match="not finite"):
        classify(clip.tower, head, IMAGES)


def test_classify_refuses_the_head_of_another_model(clip):
    with pytest.raises(EvaluationError, match="7 dimensions"):
        classify(clip.tower, torch.zeros(3, 7), IMAGES)


def test_saved_clip_opens_with_open_clip(clip, tmp_path):
    save_clip(clip, tmp_path)
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").state_dict()
    ours = load_clip(tmp_path).model.state_dict()
    for name, tensor in clip.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]) and torch.equal(tensor, ours[name]), name


def test_tower_checkpoint_holds_only_the_image_tower(clip, tower_folder):
    tensors = load_file(tower_folder / "model.safetensors")
    assert all(name.startswith("visual.") for name in tensors)
    assert sum(tensor.numel() for tensor in tensors.values()) == 474_048
    config = json.loads((tower_folder / "config.json").read_text())
    assert config["architectures"] == ["OpenClipImageTower"]
    assert config["backbone"] == "nan-merge-mini"
    assert config["open_clip"] == clip.tower.model_config


def test_loaded_tower_classifies_like_the_saved_one(clip, tower_folder):
    head = zero_shot_head(clip, CLASS_NAMES, TEMPLATES)
    loaded = load_image_tower(tower_folder)
    assert replace(loaded, visual=clip.tower.visual) == clip.tower
    np.testing.assert_array_equal(
        classify(loaded, head, IMAGES)[1], classify(clip.tower, head, IMAGES)[1]
    )


def test_a_sharded_bfloat16_tower_loads_as_float32(clip, tower_folder):
    tensors = load_file(tower_folder / "model.safetensors")
    (tower_folder / "model.safetensors").unlink()
    weight_map = {}
    for part, names in enumerate((sorted(tensors)[:10], sorted(tensors)[10:])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: tensors[name].bfloat16() for name in names}, tower_folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (tower_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    projection = load_image_tower(tower_folder).visual.proj
    assert torch.equal(projection, clip.model.visual.proj.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("visual.proj"), "missing visual.proj"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda tensors: tensors.update({"visual.proj": torch.zeros(2, 2)}),
            r"visual.proj has shape \(2, 2\) instead of \(96, 64\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tower_folder, change, message):
    rewrite(tower_folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_image_tower(tower_folder)


def test_missing_and_damaged_files_are_named(tower_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_image_tower(tmp_path / "nowhere")
    (tower_folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_image_tower(tower_folder)
    (tower_folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="'llama'"):
        load_image_tower(tower_folder)
