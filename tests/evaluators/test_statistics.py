"""Gram matrices and Fisher diagonals of small models against direct computations in float64."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from evaluators.backends.clip import build_clip, normalise_pixels, zero_shot_head
from evaluators.backends.clip_checkpoints import save_clip, save_image_tower
from evaluators.image_sets import ImageSet, save_image_set
from evaluators.statistics.fisher import fisher_diagonals, log_likelihood
from evaluators.statistics.gather import GatherRecipe
from evaluators.statistics.gram import gram_matrices, matrix_parameters
from evaluators.statistics.images import gather_image_statistics, image_subject
from evaluators.torchvision_repair import repair
from nan_merge.data_statistics import open_data_statistics
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe

repair()
pytest.importorskip("open_clip")

MODEL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def toy_set(seed: int, number: int = 10) -> ImageSet:
    rng = np.random.default_rng(seed)
    return ImageSet(
        name=f"toy{seed}",
        split="train",
        images=rng.integers(0, 255, (number, 16, 16, 3)).astype(np.uint8),
        labels=(np.arange(number) % 3).astype(np.int64),
        sample_ids=tuple(f"toy{seed}/train/{index}" for index in range(number)),
        class_names=("cat", "dog", "bird"),
        templates=("a photo of a {}.",),
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two CLIPs of one architecture, which is in the cache of the test run alone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clips")
    path = folder / "toy-tower.json"
    path.write_text(json.dumps(MODEL))
    made = [build_clip(path, seed=seed) for seed in (1, 2)]
    with torch.no_grad():  # open_clip starts biases at zero, and proj so small that it hides
        for clip in made:
            for each in clip.tower.visual.parameters():
                each.add_(0.1 * torch.randn(each.shape, generator=torch.Generator().manual_seed(3)))
    return made


def exact_grams(visual: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs of every weight, written out in float64 after open_clip's VisionTransformer."""
    model = copy.deepcopy(visual).double()
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        return lambda _, args: inputs.__setitem__(name, args[0].detach().flatten(0, -2))

    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(keep(f"{name}.in_proj_weight"))
        elif name.endswith(("mlp.c_fc", "mlp.c_proj")):
            module.register_forward_pre_hook(keep(f"{name}.weight"))
        elif name == "ln_post":
            module.register_forward_hook(
                lambda _, args, out: inputs.__setitem__("proj", out.detach()[:, 0])
            )
    with torch.no_grad():
        model(pixels.double())
    num_tokens = 5
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            x = inputs[f"{name}.in_proj_weight"].view(-1, num_tokens, 16)
            q, k, v = (x @ module.in_proj_weight.T + module.in_proj_bias).detach().chunk(3, dim=-1)
            q, k, v = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (q, k, v))
            heads = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            inputs[f"{name}.out_proj.weight"] = heads.flatten(2).flatten(0, 1)
    return {name: x.T @ x / len(x) for name, x in inputs.items()}


def pixels_of(clip, images: ImageSet) -> torch.Tensor:
    return normalise_pixels(torch.from_numpy(images.images).permute(0, 3, 1, 2), clip.tower)


@pytest.mark.parametrize("memory_bytes", [1 << 30, 16 * 16 * 4])
@pytest.mark.parametrize("batch_size", [10, 3])
def test_gram_matrices_are_those_of_every_weights_inputs(clips, memory_bytes, batch_size):
    clip, images = clips[0], toy_set(0)
    recipe = GatherRecipe(batch_size=batch_size)
    subject = image_subject(clip.tower, None, images, recipe, seed=0)
    found, num_groups = {}, 0
    for group in gram_matrices(
        subject.module, subject.batches, subject.forward, memory_bytes=memory_bytes
    ):
        found |= group
        num_groups += 1
    assert (num_groups == 1) == (memory_bytes > 10_000)
    expected = exact_grams(clip.tower.visual, pixels_of(clip, images))
    assert found.keys() == expected.keys()
    for name, gram in expected.items():
        torch.testing.assert_close(found[name].mean.double(), gram, rtol=1e-4, atol=1e-6)
        assert found[name].rows == (10 if name == "proj" else 50)
        assert found[name].inputs_first == (name == "proj")


def test_embeddings_are_no_matrices_that_meet_inputs():
    embedding, linear = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    tied = nn.Sequential(embedding, linear)
    linear.weight = embedding.weight
    assert matrix_parameters(tied) == {}
    assert list(matrix_parameters(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)))) == [
        "1.weight"
    ]


@pytest.mark.parametrize("memory_bytes", [1 << 30, 4000])
def test_fisher_is_the_mean_of_squared_gradients(clips, memory_bytes):
    clip, images = clips[0], toy_set(0, number=6)
    head = zero_shot_head(clip, images.class_names, images.templates)
    recipe = GatherRecipe(labels="given")
    subject = image_subject(clip.tower, head, images, recipe, seed=0)
    found = {}
    for group in fisher_diagonals(
        subject.module, subject.examples, subject.likelihood, memory_bytes=memory_bytes
    ):
        found |= group
    exact = copy.deepcopy(clip.tower.visual).double()
    names, parameters = zip(*exact.named_parameters(), strict=True)
    sums = [torch.zeros_like(each) for each in parameters]
    for pixels, label in zip(pixels_of(clip, images), images.labels, strict=True):
        embedding = functional.normalize(exact(pixels[None].double()), dim=1)
        logits = embedding @ head.double().T
        gradients = torch.autograd.grad(logits.log_softmax(1)[0, label], parameters)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient**2
    assert list(found) == list(names)
    for name, total in zip(names, sums, strict=True):
        scale = float(total.max()) / 6
        torch.testing.assert_close(found[name].double(), total / 6, rtol=1e-3, atol=1e-5 * scale)


def test_sampled_labels_are_drawn_from_the_models_own_chances():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]])).repeat(4000, 1)
    drawn = log_likelihood(
        logits, torch.zeros(4000, dtype=torch.int64), "sampled", torch.Generator().manual_seed(0)
    )
    chances = torch.tensor([0.7, 0.2, 0.1])
    expected = float((chances * chances.log()).sum()) * 4000  # minus the entropy
    spread = float((chances * chances.log() ** 2).sum() - (expected / 4000) ** 2) ** 0.5
    assert abs(float(drawn) - expected) < 4 * spread * 4000**0.5


@pytest.fixture(scope="module")
def towers(clips, tmp_path_factory):
    """Folders of two towers, of the whole first CLIP and of two image sets."""
    folder = tmp_path_factory.mktemp("towers")
    save_clip(clips[0], folder / "clip")
    for place, clip in enumerate(clips):
        save_image_tower(clip.tower, folder / f"tower{place}")
        save_image_set(toy_set(place), folder / f"set{place}.npz")
    return folder


@pytest.fixture(scope="module")
def gathered(towers):
    recipe = GatherRecipe(num_examples=8, batch_size=3, labels="given")
    for kind in ("gram", "fisher"):
        for place in (0, 1):
            gather_image_statistics(
                kind,
                str(towers / f"tower{place}"),
                str(towers / "clip"),
                str(towers / f"set{place}.npz"),
                recipe,
                7,
                str(towers / f"{kind}{place}"),
            )
    return towers


def models(folder, kind):
    return [
        {"path": str(folder / f"tower{p}"), "statistics": str(folder / f"{kind}{p}")}
        for p in (0, 1)
    ]


def test_statistics_say_what_they_are_of(gathered):
    found = open_data_statistics(str(gathered / "gram0"), "tower0")
    assert found.kind == "gram" and found.inputs_first == {"visual.proj"}
    assert found.facts["num_examples"] == 8 and found.facts["task"] == "toy0"
    assert found.facts["rows"]["visual.transformer.resblocks.0.mlp.c_fc.weight"] == 8 * 5
    fisher = open_data_statistics(str(gathered / "fisher0"), "tower0")
    tensors = load_file(gathered / "tower0" / "model.safetensors")
    assert fisher.checkpoint.tensors.keys() == tensors.keys()


def test_gathering_again_gives_the_same_bytes(gathered, tmp_path):
    arguments = [str(gathered / "tower0"), str(gathered / "clip"), str(gathered / "set0.npz")]
    recipe = GatherRecipe(num_examples=4)
    for name in "ab":
        gather_image_statistics("fisher", *arguments, recipe, 7, str(tmp_path / name))
    name = "statistics-00001.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_regmean_of_towers_is_its_formula_in_float64(gathered, tmp_path):
    recipe = MergeRecipe.model_validate({"models": models(gathered, "gram"), "method": "regmean"})
    merge_checkpoint(recipe, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    tuned = [load_file(gathered / f"tower{p}" / "model.safetensors") for p in (0, 1)]
    grams = [load_file(gathered / f"gram{p}" / "statistics-00001.safetensors") for p in (0, 1)]
    for name, merged in found.items():
        weights = [each[name].double() for each in tuned]
        expected = (weights[0] + weights[1]) / 2
        if name in grams[0]:
            own = [
                0.9 * g + 0.1 * torch.diag(g.diagonal()) for g in (x[name].double() for x in grams)
            ]
            if name == "visual.proj":  # x @ W
                total = own[0] @ weights[0] + own[1] @ weights[1]
                expected = torch.linalg.inv(own[0] + own[1]) @ total
            else:
                total = weights[0] @ own[0] + weights[1] @ own[1]
                expected = total @ torch.linalg.inv(own[0] + own[1])
        torch.testing.assert_close(merged.double(), expected, rtol=1e-4, atol=1e-5)
    assert len(grams[0]) == 2 * 4 + 1


def test_fisher_merging_of_towers_is_its_formula_in_float64(gathered, tmp_path):
    recipe = MergeRecipe.model_validate({"models": models(gathered, "fisher"), "method": "fisher"})
    merge_checkpoint(recipe, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    tuned = [load_file(gathered / f"tower{p}" / "model.safetensors") for p in (0, 1)]
    known = [load_file(gathered / f"fisher{p}" / "statistics-00001.safetensors") for p in (0, 1)]
    for name, merged in found.items():
        (a, b), (x, y) = ([each[name].double() for each in group] for group in (known, tuned))
        expected = torch.where(a + b == 0, (x + y) / 2, (a * x + b * y) / (a + b))
        torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6)
