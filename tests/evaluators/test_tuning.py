"""Fine-tuning that was killed goes on, and ends in the bytes of one that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evaluators.backends.clip import build_clip
from evaluators.backends.clip_checkpoints import save_clip
from evaluators.image_sets import ImageSet
from evaluators.torchvision_repair import repair
from evaluators.training import tuning
from evaluators.training.batches import cut_images, draw_corners, pad_images, padded_rows
from evaluators.training.finetune import FinetuneRecipe, finetune_image_tower
from evaluators.training.multitask import MultitaskRecipe, train_multitask_tower
from evaluators.training.tuning import Saving, state_path, tune
from nan_merge.errors import EvaluationError

pytestmark = pytest.mark.usefixtures("one_thread")

repair()
pytest.importorskip("open_clip")

RECIPE = FinetuneRecipe(steps=6, batch_size=8, warmup_steps=2, learning_rate=1e-3)


def noise_set(name: str, size: int = 32) -> ImageSet:
    rng = np.random.default_rng(len(name))
    return ImageSet(
        name=name,
        split="train",
        images=rng.integers(0, 256, (20, size, size, 3)).astype(np.uint8),
        labels=(np.arange(20) % 2).astype(np.int64),
        sample_ids=tuple(f"{name}/train/{index}" for index in range(20)),
        class_names=("one", "two"),
        templates=("a {}.",),
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "clip"
    save_clip(build_clip("nan-merge-mini", seed=0), folder)
    return folder


def finetune(clip: Path, output: Path, **changes):
    recipe = changes.pop("recipe", RECIPE)
    images = changes.pop("images", None) or noise_set("noise")
    options = {"seed": 0, "save_seconds": 0, **changes}
    return finetune_image_tower(clip, images, recipe, output=output, **options)


def stop_after(steps: int, training) -> None:
    """End a training as its worker's end does: without a word to it."""
    for _ in range(steps):
        next(training)
    training.close()


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "noise"
    assert [each.step for each in finetune(clip, output)] == [1, 2, 3, 4, 5, 6]
    return output


def test_a_stopped_finetuning_goes_on_and_gives_the_same_bytes(clip, undisturbed, tmp_path):
    output = tmp_path / "noise"
    stop_after(2, finetune(clip, output))
    stop_after(2, finetune(clip, output))  # the step gone on from, and one more
    assert state_path(output).is_file()
    assert not output.exists()
    assert [each.step for each in finetune(clip, output)] == [3, 4, 5, 6]
    assert weights(output) == weights(undisturbed)
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.safetensors"]
    assert not state_path(output).parent.exists()


def test_how_often_the_state_is_kept_changes_no_byte(clip, undisturbed, tmp_path):
    list(finetune(clip, tmp_path / "never", save_seconds=None))
    list(finetune(clip, tmp_path / "seldom", save_seconds=3600))
    assert weights(tmp_path / "never") == weights(tmp_path / "seldom") == weights(undisturbed)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"recipe": RECIPE.model_copy(update={"learning_rate": 1e-4})},
        {"images": noise_set("other noise")},
    ],
)
def test_the_state_of_another_training_is_not_gone_on_from(clip, tmp_path, change):
    output = tmp_path / "noise"
    stop_after(3, finetune(clip, output, **change))
    assert next(finetune(clip, output)).step == 1


def test_a_damaged_state_costs_only_time(clip, undisturbed, tmp_path):
    output = tmp_path / "noise"
    stop_after(3, finetune(clip, output))
    path = state_path(output)
    path.write_bytes(path.read_bytes()[:1000])
    assert next(iter(finetune(clip, output))).step == 1
    list(finetune(clip, output))
    assert weights(output) == weights(undisturbed)


def test_a_kill_while_the_state_is_written_leaves_nothing_in_the_result(
    clip, undisturbed, tmp_path
):
    output = tmp_path / "noise"
    stop_after(3, finetune(clip, output))
    kept = state_path(output)
    (kept.parent / f".{kept.name}.0123.partial").write_bytes(b"half a state")
    (kept.parents[1] / ".model.safetensors.4567.partial").write_bytes(b"half a model")
    list(finetune(clip, output))
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "model.safetensors"]
    assert weights(output) == weights(undisturbed)


def test_a_training_on_all_tasks_goes_on_too(clip, tmp_path):
    sets = [noise_set("noise"), noise_set("other noise")]
    recipe = MultitaskRecipe(steps=4, images_per_task=4, warmup_steps=1)

    def train(output: Path):
        options = {"seed": 0, "output": output, "save_seconds": 0}
        return train_multitask_tower(clip, sets, recipe, **options)

    list(train(tmp_path / "whole"))
    stop_after(2, train(tmp_path / "stopped"))
    assert [each.step for each in train(tmp_path / "stopped")] == [2, 3, 4]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


class Dropping(torch.nn.Module):
    """A layer whose weight is used twice, with dropout and a buffer that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.tied = self.first
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        dropped = torch.nn.functional.dropout(self.norm(self.first(rows)), 0.5, self.training)
        return self.tied(dropped).square().mean()


def test_dropout_shared_weights_and_buffers_do_not_undo_it(tmp_path):
    def trained(stops: tuple[int, ...], path: Path) -> dict[str, torch.Tensor]:
        last: dict[str, torch.Tensor] = {}
        for stop in (*stops, 100):
            torch.manual_seed(0)
            module = Dropping()
            torch.manual_seed(stop)  # the past of the process must not matter
            draws = iter(torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)))
            saving = Saving(path, 0)
            steps = tune(module, RECIPE, draws, module, beta2=0.98, saving=saving, key="ab")
            for step, _ in steps:
                if step == stop:
                    break
            last = module.state_dict()
        return last

    whole, stopped = trained((), tmp_path / "one"), trained((2, 5), tmp_path / "two")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert "weights/norm.running_mean" in load_file(tmp_path / "two")


def test_a_mapped_set_is_cut_like_one_in_memory(tmp_path):
    images = noise_set("noise")
    np.save(tmp_path / "images.npy", images.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    of_mapped = padded_rows(ImageSet(**{**vars(images), "images": mapped}), 2)
    rows = torch.tensor([7, 3, 3])
    corners = draw_corners(3, 2, torch.Generator().manual_seed(0))
    expected = cut_images(pad_images(images, 2)[rows], 2, corners)
    assert torch.equal(cut_images(of_mapped(rows), 2, corners), expected)


def test_images_of_another_size_are_refused(clip, tmp_path):
    with pytest.raises(EvaluationError, match=r"takes 32 x 32"):
        next(finetune(clip, tmp_path / "noise", images=noise_set("noise", size=16)))


def test_the_state_of_another_torch_is_another_state(monkeypatch):
    key = tuning.training_key(seed=0)
    monkeypatch.setattr(tuning, "version", lambda _: "0.0")
    assert tuning.training_key(seed=0) != key
