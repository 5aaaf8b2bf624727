import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from evaluators.backends.clip import build_clip, zero_shot_head
from evaluators.backends.clip_checkpoints import load_clip, load_image_tower
from evaluators.image_sets import ImageSet
from evaluators.torchvision_repair import repair
from evaluators.training.batches import draw_batches, pad_images, shift_images, take_step
from evaluators.training.finetune import FinetuneRecipe, finetune_image_tower
from evaluators.training.pretrain import PretrainRecipe, pretrain_clip
from evaluators.training.text_tower import TextRecipe, supervised_contrast, train_text_tower
from nan_merge.errors import EvaluationError, OutputError

pytestmark = pytest.mark.usefixtures("one_thread")

repair()
pytest.importorskip("open_clip")

TEXT = TextRecipe(steps=3)
PRETRAIN = PretrainRecipe(steps=3, images_per_task=4, warmup_steps=1)
FINETUNE = FinetuneRecipe(steps=3, batch_size=8, warmup_steps=1, learning_rate=1e-3)


def toy_set(name: str) -> ImageSet:
    """Dark images are "night", light ones are "day"."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = rng.integers(0, 100, (24, 32, 32, 3)) + 150 * labels[:, None, None, None]
    return ImageSet(
        name=name,
        split="train",
        images=images.astype(np.uint8),
        labels=labels.astype(np.int64),
        sample_ids=tuple(f"{name}/train/{index}" for index in range(24)),
        class_names=("night", "day"),
        templates=(f"a {name} of the {{}}.", f"the {{}} in a {name}."),
    )


SETS = [toy_set("photo"), toy_set("painting")]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "clip"
    progress = list(pretrain_clip(SETS, TEXT, PRETRAIN, seed=0, output=folder))
    return folder, progress


def finetune(clip_folder, output, seed=0, recipe=FINETUNE):
    return list(finetune_image_tower(clip_folder, SETS[0], recipe, seed=seed, output=output))


def test_pretraining_reports_every_step(pretrained):
    _, progress = pretrained
    assert [each.step for each in progress] == [1, 2, 3, 4, 5, 6]
    assert {each.num_steps for each in progress} == {6}
    assert [each.stage for each in progress] == ["text tower"] * 3 + ["image tower"] * 3


def test_pretraining_publishes_the_clip_and_its_image_tower(pretrained):
    folder, _ = pretrained
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert names == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "image_tower/config.json",
        "image_tower/model.safetensors",
    }
    whole = load_clip(folder).tower.visual.state_dict()
    tower = load_image_tower(folder / "image_tower").visual.state_dict()
    assert all(torch.equal(whole[name], tower[name]) for name in whole)


def test_same_seed_gives_the_same_bytes(pretrained, tmp_path):
    folder, _ = pretrained
    list(pretrain_clip(SETS, TEXT, PRETRAIN, seed=0, output=tmp_path / "again"))
    for file in ("open_clip_model.safetensors", "image_tower/model.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    finetune(folder, tmp_path / "one")
    torch.rand(5)  # the global random state must not matter
    finetune(folder, tmp_path / "two")
    finetune(folder, tmp_path / "other", seed=1)
    first, second, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other")
    )
    assert first == second != other


def test_finetuning_moves_the_image_tower_and_keeps_its_names(pretrained, tmp_path):
    folder, _ = pretrained
    finetune(folder, tmp_path / "tuned")
    before = load_file(folder / "image_tower" / "model.safetensors")
    after = load_file(tmp_path / "tuned" / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["visual.proj"], after["visual.proj"])
    assert (tmp_path / "tuned" / "config.json").read_bytes() == (
        folder / "image_tower" / "config.json"
    ).read_bytes()


def test_finetuning_learns_night_from_day(pretrained, tmp_path):
    recipe = FinetuneRecipe(steps=30, batch_size=16, learning_rate=1e-3)
    progress = finetune(pretrained[0], tmp_path / "tuned", recipe=recipe)
    assert progress[-1].loss < 0.5 * progress[0].loss


def test_an_abandoned_run_leaves_nothing(pretrained, tmp_path):
    running = finetune_image_tower(
        pretrained[0], SETS[0], FINETUNE, seed=0, output=tmp_path / "half"
    )
    next(running)
    running.close()
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_before_training(pretrained):
    with pytest.raises(OutputError, match="exists already"):
        next(pretrain_clip(SETS, TEXT, PRETRAIN, seed=0, output=pretrained[0]))


def test_divergence_is_an_error():
    parameter = torch.nn.Parameter(torch.tensor([float("nan")]))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with pytest.raises(EvaluationError, match="Lower learning_rate"):
        take_step(optimizer, parameter.sum(), learning_rate=0.1)


def test_text_training_parts_words_and_joins_prompts_of_one_word():
    clip = build_clip("nan-merge-mini", seed=0)
    list(train_text_tower(clip, SETS, TextRecipe(steps=20)))
    photo, painting = (
        torch.nn.functional.normalize(zero_shot_head(clip, each.class_names, each.templates), dim=1)
        for each in SETS
    )
    similarity = photo @ painting.T
    assert similarity.diag().min() > 0.9
    assert similarity.fliplr().diag().max() < 0.2
    assert not clip.model.token_embedding.weight.requires_grad
    assert clip.model.logit_scale.requires_grad


def test_contrast_of_two_orthogonal_pairs_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    words = torch.tensor([0, 0, 1, 1])
    loss = supervised_contrast(embeddings, words[:, None] == words[None, :], 1.0)
    # One positive of similarity 1 among it and two of similarity 0: -log(e / (e + 2)).
    torch.testing.assert_close(loss, -torch.log(torch.tensor(np.e / (np.e + 2))).float())


def test_batches_pass_over_every_image_before_repeating_one():
    batches = draw_batches(10, 4, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(batches) for _ in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))


def test_shifts_cut_windows_out_of_the_padded_image():
    image_set = SETS[0]
    padded = pad_images(image_set, 2)
    assert torch.equal(
        padded[:, :, 2:-2, 2:-2], torch.from_numpy(image_set.images).permute(0, 3, 1, 2)
    )
    shifted = shift_images(padded, 2, torch.Generator().manual_seed(0))
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (n, 3, 5, 5, 32, 32)
    matches = (windows == shifted[:, :, None, None]).all(dim=(1, 4, 5))
    assert matches.any(dim=2).any(dim=1).all()
    assert torch.equal(
        shift_images(padded[..., 2:-2, 2:-2], 0, torch.Generator()), padded[..., 2:-2, 2:-2]
    )


def test_recipes_refuse_unknown_fields():
    with pytest.raises(ValidationError, match="learning_rte"):
        FinetuneRecipe(learning_rte=1e-3)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("recipe", [TextRecipe, PretrainRecipe, FinetuneRecipe])
def test_recipes_refuse_infinity_and_say_what_their_fields_are(recipe):
    with pytest.raises(ValidationError, match="finite"):
        recipe(learning_rate=float("inf"))
    assert all(field.description for field in recipe.model_fields.values())
