"""What a plan says a merge reads and holds, against merges that are made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nan_merge.cost import list_passes, memory_ceiling
from nan_merge.estimate import Speeds, compute_costs, estimate, measure_speeds
from nan_merge.merge import merge_checkpoint
from nan_merge.methods import METHODS
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import run_serially

NAN = {"source": "nan", "target": "task_vector"}
VARIANTS = [
    # Those that read statistics have tests of their own, which bring some.
    *({"method": n} for n, row in METHODS.items() if row.most_models != 1 and row.reads is None),
    {"method": "ties", "coefficients": NAN},
    {"method": {"name": "ties", "dialect": "mergekit"}, "coefficients": NAN},
    {"method": {"name": "ties", "dialect": "fusionbench"}},
    {"method": {"name": "sce", "density": 0.5}},
    {"method": {"name": "model_stock", "vectors": "row"}},
    {"method": "task_arithmetic", "coefficients": {"scale": "norm"}},
    {"method": "task_arithmetic", "coefficients": "variance"},
]


def make_recipe(family: dict[str, str], **content) -> MergeRecipe:
    models = [family["math"], family["code"]]
    return MergeRecipe.model_validate({"base": family["base"], "models": models, **content})


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_passes_are_those_that_a_merge_makes(family, tmp_path, variant):
    recipe = make_recipe(family, **variant, shard_bytes=300)
    labels: list[str] = []

    def run_tasks(tasks):
        labels.extend(dict.fromkeys(task.label for task in tasks))
        return run_serially(tasks)

    merge_checkpoint(recipe, tmp_path / "out", run_tasks)
    assert [each.label for each in list_passes(plan_merge(recipe))] == labels


def test_bytes_are_those_of_the_files(family):
    sizes = {"embed": 44, "0": 15 + 5, "1": 600_000, "10": 3, "scale": 1}
    merged = 3 * 4 * sum(sizes.values())
    passes = list_passes(plan_merge(make_recipe(family, method="ties", coefficients="nan")))
    read = {each.label: each.read_bytes for each in passes}
    # The integers, 6 of 8 bytes, are read by the merge alone.
    assert read == {
        "norms": merged, "magnitudes": merged, "thresholds": merged, "signs": merged,
        "merge": merged + 3 * 6 * 8,
    }  # fmt: skip


def test_inputs_with_tensors_that_are_left_out_are_read_once_more(family, write_checkpoint):
    base = {"a": torch.zeros(10), "b": torch.zeros(5)}
    paths = {
        "base": write_checkpoint("left", base),
        "math": write_checkpoint("m1", {"a": torch.ones(10)}),
        "code": write_checkpoint("m2", {"a": torch.ones(10) * 2, "b": torch.ones(5)}),
    }
    recipe = make_recipe(paths, method="task_arithmetic", missing="drop")
    assert [(each.label, each.read_bytes) for each in list_passes(plan_merge(recipe))] == [
        ("merge", 3 * 40),
        ("fingerprints", 2 * 60),
    ]
    merge_checkpoint(recipe, Path(paths["base"]).parent / "out")  # which remembers them
    assert [each.label for each in list_passes(plan_merge(recipe))] == ["merge"]


def sized(tmp_path: Path, rows: int, columns: int = 1000, models: int = 2) -> dict[str, str]:
    """Headers of models with one large tensor; the files are holes and take no space."""
    paths: dict[str, str] = {}
    for name in ["base", *(f"m{place}" for place in range(models))]:
        folder = tmp_path / f"{rows}x{columns}" / name
        folder.mkdir(parents=True)
        with (folder / "model.safetensors").open("wb") as file:
            size = rows * columns * 2
            text = (
                f'{{"w":{{"dtype":"BF16","shape":[{rows},{columns}],"data_offsets":[0,{size}]}}}}'
            )
            file.write(len(text).to_bytes(8, "little") + text.encode())
            file.truncate(8 + len(text) + size)
        paths[name] = str(folder)
    return paths


def ceiling_of(paths: dict[str, str], method: object, workers: int = 2) -> int:
    models = [path for name, path in paths.items() if name != "base"]
    recipe = {"base": paths["base"], "models": models, "method": method}
    return memory_ceiling(plan_merge(MergeRecipe.model_validate(recipe)), workers)


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "ties", "dare_ties", "della_ties", "average"]
)
def test_element_and_row_methods_stay_under_700_mb_whatever_the_size(tmp_path, method):
    small, huge = sized(tmp_path, 5_000), sized(tmp_path, 50_000_000)  # 10 MB and 100 GB
    assert ceiling_of(huge, method) < 700 << 20
    assert ceiling_of(huge, method) == pytest.approx(ceiling_of(small, method), rel=0.02)


def test_matrix_methods_grow_with_the_largest_matrix_and_say_so(tmp_path):
    small, large = sized(tmp_path, 5_000), sized(tmp_path, 50_000)
    grown = ceiling_of(large, "breadcrumbs") - ceiling_of(small, "breadcrumbs")
    # Per element: 3 inputs and the result in 2 bytes each; 3 + 10 + 2 x 3 copies in float32.
    assert grown == 45_000_000 * (4 * 2 + 19 * 4)


def test_more_models_and_workers_hold_more(tmp_path):
    two, eight = sized(tmp_path, 100, models=2), sized(tmp_path, 101, models=8)
    assert ceiling_of(two, "ties") < ceiling_of(eight, "ties")
    assert ceiling_of(two, "ties", 1) < ceiling_of(two, "ties", 2) < ceiling_of(two, "ties", 8)


PEAK = """
import sys
from pathlib import Path
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe
recipe = MergeRecipe.model_validate({
    "base": "base", "models": ["m0", "m1"], "method": sys.argv[1], "tokenizer": None,
    "coefficients": {"lambda": 0.5},
})
if __name__ == "__main__":
    merge_checkpoint(recipe, Path("out"), workers=2)
"""


def private_bytes(pid: int) -> int:
    """RssAnon of a process and everything below it."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += private_bytes(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended while we looked
    return total


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
@pytest.mark.parametrize("rows", [1_000, 10_000])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "della_ties", "breadcrumbs"])
def test_a_merge_stays_under_its_ceiling(tmp_path, method, rows):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(rows, 1000, generator=generator)
    for name in ("base", "m0", "m1"):
        (tmp_path / name).mkdir()
        own = base + 0.1 * torch.randn(base.shape, generator=generator)
        tensors = {f"layers.{place}.w": own.bfloat16() for place in range(2)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    paths = {name: str(tmp_path / name) for name in ("base", "m0", "m1")}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", PEAK, method], cwd=tmp_path, env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        peak = max(peak, private_bytes(process.pid))
        time.sleep(0.01)
    assert process.returncode == 0, process.stderr and process.stderr.read()
    ceiling = ceiling_of(paths, method)
    assert ceiling / 4 < peak <= ceiling  # a bound that says something


def test_an_estimate_adds_up(family):
    plan = plan_merge(make_recipe(family, method="task_arithmetic", coefficients="nan"))
    speeds = Speeds(read=1e6, write=2e6, compute={"norms": 1e-6, "merge": 4e-6})
    norms, merge = estimate(plan, speeds, workers=2)
    assert norms.seconds == pytest.approx(norms.read_bytes / 1e6)  # reading takes longest
    # Read once, the inputs are in memory: computing on two cores against writing.
    assert merge.written_bytes == plan.output_bytes
    assert merge.seconds == pytest.approx(merge.read_bytes * 4e-6 / 2)
    slow_disk = Speeds(read=1e6, write=1e3, compute=speeds.compute)
    assert estimate(plan, slow_disk, 2)[1].seconds == pytest.approx(plan.output_bytes / 1e3)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_pass_is_tried_out(family, monkeypatch, variant):
    monkeypatch.setattr("nan_merge.estimate.PROBE_ELEMENTS", 1 << 14)
    plan = plan_merge(make_recipe(family, **variant))
    costs = compute_costs(plan)
    assert Counter(costs.keys()) == Counter(each.label for each in list_passes(plan))
    assert all(cost >= 0 for cost in costs.values())


def test_trying_out_leaves_nothing_behind(family, tmp_path):
    plan = plan_merge(make_recipe(family, method="ties"))
    before = sorted(tmp_path.rglob("*"))
    speeds = measure_speeds(plan, tmp_path / "deep" / "out")
    assert sorted(tmp_path.rglob("*")) == before
    assert speeds.read > 0
    assert speeds.write is not None


def test_a_disk_that_takes_nothing_leaves_the_rest_of_the_estimate(family, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    plan = plan_merge(make_recipe(family, method="ties"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    speeds = measure_speeds(plan)
    assert (speeds.write, speeds.compute) == (None, {})
    assert all(each.seconds is None for each in estimate(plan, speeds, 2))
