"""TSV-Merge, Iso-C, Iso-CTS and WUDI against plain float64 references written here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nan_merge.cost import memory_ceiling
from nan_merge.merge import merge_checkpoint
from nan_merge.methods import METHODS
from nan_merge.methods.isotropic import directions
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from tests.method_reference import draw, merge_whole, options_of

NAMES = ["tsv", "iso_c", "iso_cts", "wudi"]
SHAPES = [(12, 9), (9, 12), (16, 16), (3, 20), (1, 6)]
WEIGHTS = [0.5, 0.8, 1.1]


def procrustes(matrix: Tensor) -> Tensor:
    """(M M^T)^(-1/2) M by eigenvectors of the smaller Gram matrix."""
    if matrix.shape[0] > matrix.shape[1]:
        return procrustes(matrix.T).T
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T @ matrix


def reference_tsv(vectors: Sequence[Tensor]) -> Tensor:
    """A sum of outer products, one at a time."""
    kept = max(1, min(vectors[0].shape) // len(vectors))
    parts = [torch.linalg.svd(vector, full_matrices=False) for vector in vectors]
    columns = procrustes(torch.cat([u[:, :kept] for u, _, _ in parts], dim=1))
    rows = procrustes(torch.cat([v[:kept] for _, _, v in parts]))
    total = torch.zeros_like(vectors[0])
    for place, size in enumerate(torch.cat([s[:kept] for _, s, _ in parts])):
        total += size * torch.outer(columns[:, place], rows[place])
    return total


def reference_iso_c(vectors: Sequence[Tensor]) -> Tensor:
    total = sum(vectors[1:], vectors[0])
    return procrustes(total) * torch.linalg.svdvals(total).mean()


def reference_iso_cts(vectors: Sequence[Tensor], common: float = 0.8) -> Tensor:
    total = sum(vectors[1:], vectors[0])
    rank = min(total.shape)
    own = round((rank - int(rank * common)) / len(vectors))
    shared = rank - own * len(vectors)
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    columns, sizes, rows = [u[:, :shared]], [s[:shared]], [v[:shared]]
    outside = torch.eye(total.shape[0]).double() - u[:, :shared] @ u[:, :shared].T
    for vector in vectors:
        a, b, c = torch.linalg.svd(outside @ vector, full_matrices=False)
        columns.append(a[:, :own])
        sizes.append(b[:own])
        rows.append(c[:own])
    size = torch.cat(sizes).mean()
    return size * procrustes(torch.cat(columns, dim=1)) @ procrustes(torch.cat(rows))


def reference_wudi(vectors: Sequence[Tensor], steps: int = 300, rate: float = 1e-5) -> Tensor:
    """The loss as the paper writes it, followed by torch's own Adam."""
    update = torch.nn.Parameter(sum(vectors[1:], vectors[0]))
    optimizer = torch.optim.Adam([update], lr=rate)
    for _ in range(steps):
        loss = sum(
            ((update - vector) @ vector.T).square().sum() / vector.square().sum()
            for vector in vectors
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return update.detach()


REFERENCES = {
    "tsv": reference_tsv,
    "iso_c": reference_iso_c,
    "iso_cts": reference_iso_cts,
    "wudi": reference_wudi,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matrices_are_merged_as_the_paper_says(name, shape):
    base, tuned = draw(shape, 3)
    if name == "tsv" and min(shape) < 3:
        pytest.skip("more triplets than rows: the polar factor is not unique")
    merged = merge_whole(options_of(name), base, tuned, WEIGHTS)
    vectors = [weight * (each - base).double() for weight, each in zip(WEIGHTS, tuned, strict=True)]
    expected = base.double() + REFERENCES[name](vectors)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=2e-6)
    plain = base.double() + sum(vectors)
    # Iso-C of a single row is that row.
    assert shape == (1, 6) or float((merged - plain).abs().max()) > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), (), (0, 3)], ids=str)
def test_what_is_no_matrix_is_averaged(name, shape):
    base, tuned = draw(shape, 3)
    merged = merge_whole(options_of(name), base, tuned, WEIGHTS)
    update = sum(w * (t - base).double() for w, t in zip(WEIGHTS, tuned, strict=True)) / 3
    torch.testing.assert_close(merged.double(), base.double() + update, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_excluded_names_are_averaged(name):
    base, tuned = draw((6, 8), 2)
    excluded = merge_whole(
        options_of(name, exclude=["*embed*"]), base, tuned, [1.0, 1.0], tensor="embed.weight"
    )
    torch.testing.assert_close(excluded, (tuned[0] + tuned[1]) / 2)
    other = merge_whole(options_of(name, exclude=["*embed*"]), base, tuned, [1.0, 1.0])
    assert not torch.allclose(other, excluded, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_models_that_learned_nothing_change_nothing(name):
    base, (tuned, _) = draw((6, 8), 2)
    still = merge_whole(options_of(name), base, [base.clone(), base.clone()], [1.0, 1.0])
    assert torch.equal(still, base)
    if name == "tsv":  # half of the triplets are kept, as if the other model were there
        alone = merge_whole(options_of(name), base, [tuned, base.clone()], [1.0, 1.0])
        u, s, v = torch.linalg.svd((tuned - base).double(), full_matrices=False)
        expected = base + (u[:, :3] * s[:3]) @ v[:3]
        torch.testing.assert_close(alone.double(), expected, rtol=1e-5, atol=1e-6)


def test_directions_are_shared_out_evenly():
    assert directions(768, 8, 0.8) == (19, 616)
    assert directions(10, 3, 0.8) == (1, 7)
    assert directions(10, 8, 0.9) == (0, 10)


def test_wudi_goes_to_the_least_interference():
    base, tuned = draw((8, 6), 2)
    options = options_of("wudi", steps=4000, learning_rate=1e-3)
    merged = merge_whole(options, base, tuned, [1.0, 1.0]) - base
    vectors = [(each - base).double() for each in tuned]
    grams = [vector.T @ vector / vector.square().sum() for vector in vectors]
    right = sum(v @ g for v, g in zip(vectors, grams, strict=True))
    exact = right @ torch.linalg.inv(grams[0] + grams[1])
    torch.testing.assert_close(merged.double(), exact, rtol=1e-2, atol=1e-3)


def test_wudi_gives_the_same_for_wide_matrices():
    base, tuned = draw((3, 40), 2)  # goes through the models one by one
    merged = merge_whole(options_of("wudi"), base, tuned, [1.0, 1.0])
    expected = base.double() + reference_wudi([(each - base).double() for each in tuned])
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_merges_them_and_nan_weighs_them(family, tmp_path, name):
    models = [family["math"], family["code"], family["chat"]]
    content = {
        "base": family["base"],
        "models": models,
        "method": {"name": name, "exclude": ["*1.*"]},
    }
    nan = {"source": "nan", "target": "task_vector"}
    found = []
    for place, coefficients in enumerate(("uniform", nan)):
        recipe = MergeRecipe.model_validate(content | {"coefficients": coefficients})
        output = merge_checkpoint(recipe, tmp_path / str(place), workers=place + 1).output
        found.append((output / "model.safetensors").read_bytes())
    assert found[0] != found[1]


@pytest.mark.parametrize("name", NAMES)
def test_their_memory_and_cost_are_declared(family, name):
    content = {"base": family["base"], "models": [family["math"], family["code"]]}
    plain, dear = (
        memory_ceiling(plan_merge(MergeRecipe.model_validate(content | {"method": m})), 1)
        for m in ("breadcrumbs", name)
    )
    assert dear - plain == 600_000 * 30 * 4  # the largest matrix, 40 copies instead of 10
    assert METHODS[name].cost
