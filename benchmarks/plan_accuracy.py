"""Compare what `nan-merge plan` foretells with the merge: peak private memory, processor time.

    python benchmarks/synthetic_llama.py /data/llama --size 0.3b
    python benchmarks/plan_accuracy.py /data/llama

A line per method: peak RssAnon summed over processes, and the ceiling; processor time of the
merge over all processes (imports apart), and the sum of the estimate's passes. Methods that take
whole tensors need tens of bytes for each element of the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from processes import private_megabytes

from nan_merge.cost import list_passes, memory_ceiling
from nan_merge.estimate import compute_costs
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe

CASES: dict[str, dict[str, object]] = {
    "task arithmetic": {"method": "task_arithmetic", "coefficients": {"lambda": 0.3}},
    "TIES + NAN": {"method": "ties", "coefficients": {"source": "nan", "target": "task_vector"}},
    "DARE-TIES": {"method": "dare_ties"},
    "DELLA-TIES": {"method": "della_ties"},
    "Breadcrumbs": {"method": "breadcrumbs"},
    "DELLA-TIES, mergekit": {"method": {"name": "della_ties", "dialect": "mergekit"}},
}
MERGE = """
import resource, sys
from pathlib import Path
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe_file import load_recipe
from nan_merge.methods import METHODS

def spent():
    users = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in users)

recipe, before = load_recipe(Path(sys.argv[1])), spent()
merge_checkpoint(recipe, Path(sys.argv[2]), workers=int(sys.argv[3]))
print(spent() - before)
"""


def compare(folder: Path, case: str, workers: int) -> str:
    """Merge once, and put what was measured beside what was foretold."""
    models = sorted(str(path) for path in folder.glob("expert*"))
    content = {"base": str(folder / "base"), "models": models, **CASES[case]}
    plan = plan_merge(MergeRecipe.model_validate(content))
    costs = compute_costs(plan)
    estimate = sum(each.read_bytes * costs.get(each.label, 0.0) for each in list_passes(plan))
    work = folder / "accuracy"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "recipe.yaml").write_text(json.dumps(content))
    command = [sys.executable, "-c", MERGE, str(work / "recipe.yaml"), str(work / "out")]
    environment = os.environ | {"NAN_MERGE_CACHE": str(work / "cache")}
    process = subprocess.Popen(
        [*command, str(workers)], env=environment, stdout=subprocess.PIPE, text=True
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, private_megabytes(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    spent = float(process.stdout.read())
    shutil.rmtree(work)
    ceiling = memory_ceiling(plan, workers) / 2**20
    return (
        f"{case:22} {peak:7,.0f} MiB of {ceiling:7,.0f}   {spent:6.1f} s, estimate {estimate:6.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what synthetic_llama.py wrote")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--case", action="append", choices=CASES, help="all if not given")
    arguments = parser.parse_args()
    for name in arguments.case or CASES:
        print(compare(arguments.folder, name, arguments.workers), flush=True)
