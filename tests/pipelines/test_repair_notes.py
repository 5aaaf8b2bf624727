"""What commands say of a method's repairs and of its cost."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from pipelines.merge import repair_notes
from pipelines.plan import summary


def test_repairs_are_told_in_words():
    repairs = {
        "ridge": {"a.weight": 1e-7, "b.weight": 2e-7},
        "averaged, as no example touched them": {"a.weight": 1000, "b.weight": 234},
    }
    assert repair_notes({"repairs": repairs}) == [
        "A ridge was added to the Gram matrices of 2 tensors, such as a.weight: their sum could "
        "not be inverted. What no data showed there keeps the average of the models.",
        "1,234 elements of 2 tensors were averaged, as no example touched them.",
    ]
    assert repair_notes({}) == []


def test_a_plan_says_what_makes_a_method_dear(tmp_path):
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.randn(4, 4)}, tmp_path / name / "model.safetensors")
    content = {
        "base": str(tmp_path / "base"),
        "models": [str(tmp_path / n) for n in ("one", "two")],
    }
    dear, plain = (
        summary(plan_merge(MergeRecipe.model_validate(content | {"method": m})), None, [], 1)
        for m in ("iso_c", "task_arithmetic")
    )
    assert (
        "iso_c is dear: a singular value decomposition of every matrix. That grows faster than "
        "what is read, so for large matrices the time is more than estimated."
    ) in dear
    assert not any("is dear" in line for line in plain)
