import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.backends.clip import build_clip, classify, place_tower, zero_shot_head
from evaluators.backends.clip_checkpoints import save_clip
from evaluators.clip_sets import CLIP_SETS
from evaluators.image_classification import (
    HeadSpec,
    ImageBenchmark,
    classify_shard,
    image_shards,
    write_heads,
)
from evaluators.image_sets import ImageSet, save_image_set
from evaluators.torchvision_repair import repair
from nan_merge.errors import EvaluationError

repair()
pytest.importorskip("open_clip")

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
TEMPLATES = ("the letter {}.",)


def save_toy_set(path: Path) -> ImageSet:
    rng = np.random.default_rng(0)
    toy = ImageSet(
        name="toy",
        split="test",
        images=rng.integers(0, 256, (26, 32, 32, 3)).astype(np.uint8),
        labels=np.arange(26),
        sample_ids=tuple(f"toy/test/{index}/font-{index % 3}" for index in range(26)),
        class_names=LETTERS,
        templates=TEMPLATES,
    )
    save_image_set(toy, path)
    return toy


def font_of(sample_id: str) -> str:
    return sample_id.split("/")[3]


def test_predictions_carry_the_source_of_their_sample(tmp_path):
    toy = save_toy_set(tmp_path / "toy.npz")
    clip = build_clip("nan-merge-mini", seed=0)
    save_clip(clip, tmp_path / "clip")
    heads = str(tmp_path / "heads.safetensors")
    write_heads(str(tmp_path / "clip"), [HeadSpec("toy", LETTERS, TEMPLATES, heads)])
    benchmark = ImageBenchmark("toy", str(tmp_path / "toy.npz"), toy.digest(), heads, font_of)
    (shard,) = image_shards(benchmark, 26, 10)
    (predictions,) = classify_shard([clip.tower], shard)
    assert [each.sample_id for each in predictions] == list(toy.sample_ids)
    assert {each.cluster_id for each in predictions} == {"font-0", "font-1", "font-2"}
    assert all(each.cluster_id == font_of(each.sample_id) for each in predictions)


def test_shards_hold_whole_batches_so_that_cutting_changes_no_number(tmp_path, monkeypatch):
    toy = save_toy_set(tmp_path / "toy.npz")
    clip = build_clip("nan-merge-mini", seed=0)
    save_clip(clip, tmp_path / "clip")
    heads = str(tmp_path / "heads.safetensors")
    write_heads(str(tmp_path / "clip"), [HeadSpec("toy", LETTERS, TEMPLATES, heads)])
    benchmark = ImageBenchmark("toy", str(tmp_path / "toy.npz"), toy.digest(), heads)
    (whole,) = image_shards(benchmark, 26, 4)
    monkeypatch.setattr("evaluators.image_classification.IMAGES_PER_SHARD", 11)
    shards = image_shards(benchmark, 26, 4)
    assert [len(shard.places) for shard in shards] == [8, 8, 8, 2]
    cut = [each for shard in reversed(shards) for each in classify_shard([clip.tower], shard)[0]]
    assert [sorted(cut, key=lambda each: toy.sample_ids.index(each.sample_id))] == classify_shard(
        [clip.tower], whole
    )


FULL_DISK = """
import resource, sys
from pathlib import Path
from evaluators.backends.clip import build_clip
from evaluators.backends.clip_checkpoints import save_clip, save_image_tower, save_tensors
from evaluators.image_classification import HeadSpec, write_heads
from nan_merge.errors import OutputError

folder = Path(sys.argv[1])
clip = build_clip("nan-merge-mini", seed=0)
save_clip(clip, folder / "clip")
heads = folder / "kept" / "heads.safetensors"
spec = HeadSpec("toy", tuple("abcdefghijklmnopqrstuvwxyz"), ("the letter {}.",), str(heads))
write_heads(str(folder / "clip"), [spec])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
for write in (
    lambda: save_clip(clip, folder / "other"),
    lambda: save_image_tower(clip.tower, folder / "tower"),
    lambda: write_heads(str(folder / "clip"), [spec]),
):
    try:
        write()
        print("written")
    except OutputError as error:
        print(error)
"""


def test_a_full_disk_is_told_and_leaves_no_part_of_a_file(tmp_path):
    save_toy_set(tmp_path / "toy.npz")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    files = ("open_clip_model.safetensors", "model.safetensors", "heads.safetensors")
    for line, file in zip(result.stdout.splitlines(), files, strict=True):
        assert line.startswith("No space left on the disk while writing")
        assert file in line
    # The old heads stay; nothing else was left where tensors should be.
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["heads.safetensors"]
    assert [path.name for path in (tmp_path / "tower").iterdir()] == ["config.json"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["open_clip_config.json"]
    assert json.loads((tmp_path / "tower" / "config.json").read_text())["backbone"]


def test_heads_are_those_of_open_clip(tmp_path):
    import open_clip
    import torch

    clip = build_clip("nan-merge-mini", seed=0)
    names, templates = CLIP_SETS["EuroSAT"].class_names, CLIP_SETS["EuroSAT"].templates
    ours = zero_shot_head(clip, names, templates)
    theirs = open_clip.build_zero_shot_classifier(clip.model, clip.tokenize, names, templates)
    scale = clip.model.logit_scale.exp()
    torch.testing.assert_close(ours, (theirs * scale).T, rtol=1e-5, atol=1e-5)
    rolled = (*names[1:], names[0])
    assert not torch.allclose(zero_shot_head(clip, rolled, templates), ours, atol=1e-2)


def test_a_head_for_another_backbone_is_refused(tmp_path):
    # As ViT-B/16 beside ViT-B/32: their embeddings are equally wide.
    save_toy_set(tmp_path / "toy.npz")
    clip = build_clip("nan-merge-mini", seed=0)
    save_clip(clip, tmp_path / "clip")
    heads = str(tmp_path / "heads.safetensors")
    write_heads(str(tmp_path / "clip"), [HeadSpec("toy", LETTERS, TEMPLATES, heads)])
    benchmark = ImageBenchmark("toy", str(tmp_path / "toy.npz"), "", heads)
    (shard,) = image_shards(benchmark, 26, 10)
    for change in ({"vision_cfg": {"patch_size": 16}}, {"quick_gelu": True}):
        config = clip.tower.model_config
        vision = {**config["vision_cfg"], **change.get("vision_cfg", {})}
        other = replace(clip.tower, model_config={**config, **change, "vision_cfg": vision})
        with pytest.raises(
            EvaluationError, match=r"head of toy .* is for a ViT .*but the model is"
        ):
            classify_shard([other], shard)


def test_several_towers_in_one_pass_answer_as_each_alone(tmp_path):
    save_toy_set(tmp_path / "toy.npz")
    clips = [build_clip("nan-merge-mini", seed=seed) for seed in (0, 1, 2)]
    save_clip(clips[0], tmp_path / "clip")
    heads = str(tmp_path / "heads.safetensors")
    write_heads(str(tmp_path / "clip"), [HeadSpec("toy", LETTERS, TEMPLATES, heads)])
    benchmark = ImageBenchmark("toy", str(tmp_path / "toy.npz"), "", heads)
    (shard,) = image_shards(benchmark, 26, 10)
    towers = [clip.tower for clip in clips]
    together = classify_shard(towers, shard)
    assert together == [classify_shard([tower], shard)[0] for tower in towers]
    assert together[0] != together[1]


def test_bfloat16_answers_almost_alike(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    clip = build_clip("nan-merge-mini", seed=0)
    head = zero_shot_head(clip, LETTERS, TEMPLATES)
    _, exact = classify(clip.tower, head, images)
    half = place_tower(build_clip("nan-merge-mini", seed=0).tower, "cpu", "bfloat16")
    _, rounded = classify(half, head, images)
    assert 0 < np.abs(exact - rounded).max() < 0.1


@pytest.mark.parametrize("multiplies", [False, True])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, multiplies):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    tower = place_tower(build_clip("nan-merge-mini", seed=0).tower, "cpu", "auto")
    wanted = torch.bfloat16 if multiplies else torch.float32
    assert {each.dtype for each in tower.visual.parameters()} == {wanted}
