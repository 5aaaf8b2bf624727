"""RegMean, Fisher merging, TSV-Merge, Iso-C, Iso-CTS and WUDI against FusionBench, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.method_reference import draw, merge_whole, options_of

REASON = "fusion-bench is not installed (requirements/peers.txt)"
iso = pytest.importorskip("fusion_bench.method.isotropic_merging.iso_utils", reason=REASON)
tsvm = pytest.importorskip(
    "fusion_bench.method.task_singular_vector.utils.TSVM_utils", reason=REASON
)
wudi = pytest.importorskip("fusion_bench.method.wudi.wudi", reason=REASON)
regmean = pytest.importorskip("fusion_bench.method.regmean.regmean", reason=REASON)
fisher = pytest.importorskip("fusion_bench.method.fisher_merging.fisher_merging", reason=REASON)

shapes = pytest.mark.parametrize("shape", [(12, 9), (9, 15), (16, 16), (7,)], ids=str)


def vectors_of(base: Tensor, tuned: list[Tensor]) -> list[dict[str, Tensor]]:
    return [{"weight": (each - base).double()} for each in tuned]


@shapes
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("tsv", lambda v: tsvm.compute_and_sum_svd_mem_reduction(v, accelerator="cpu")),
        ("iso_c", lambda v: iso.iso_c(v, accelerator="cpu")),
        ("iso_cts", lambda v: iso.iso_cts(v, 0.8, accelerator="cpu")),
        ("wudi", lambda v: wudi.wudi_merging(v, accelerator="cpu")),
    ],
)
def test_matrices_are_merged_as_there(name, theirs, shape):
    base, tuned = draw(shape, 3)
    update = theirs(vectors_of(base, tuned))["weight"].detach()
    merged = merge_whole(options_of(name), base, tuned, [1.0] * 3)
    # TSV's sums are float32 there, whatever is put in.
    torch.testing.assert_close(merged.double(), base.double() + update, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("off_diagonal", [1.0, 0.9, 0.6])
def test_regmean_is_the_same(off_diagonal):
    _, tuned = draw((5, 8), 3)
    inputs = [torch.randn(40, 8, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    grams = [(x.T @ x / len(x)).double() for x in inputs]
    theirs = regmean.merging_with_regmean_weights(
        {"layer.weight": [each.double() for each in tuned]},
        [{"layer": gram} for gram in grams],
        reduce_non_diagonal_ratio=off_diagonal,
    )["layer.weight"]
    merged = merge_whole(
        options_of("regmean", off_diagonal=off_diagonal),
        None,
        tuned,
        [1 / 3] * 3,
        statistics=tuple(gram.float() for gram in grams),
    )
    torch.testing.assert_close(merged.double(), theirs, rtol=1e-5, atol=1e-5)


def test_fisher_is_the_same_without_what_is_added_there():
    _, tuned = draw((5, 8), 3)
    known = [torch.rand(5, 8, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    theirs = fisher.merging_with_fisher_weights(
        {"weight": [each.double() for each in tuned]},
        [{"weight": each.double()} for each in known],
        torch.tensor([0.5, 0.3, 0.2]),
        normalize_fisher_weight=False,
        minimal_fisher_weight=0.0,
    )["weight"]
    options = options_of("fisher")
    flat = [each.flatten() for each in tuned]
    statistics = tuple(each.flatten() for each in known)
    merged = merge_whole(options, None, flat, [0.5, 0.3, 0.2], statistics=statistics)
    torch.testing.assert_close(merged.double().view(5, 8), theirs, rtol=1e-6, atol=1e-6)
