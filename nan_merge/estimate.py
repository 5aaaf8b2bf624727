"""About how long a merge will take here: a moment of real work, and a sum. It is an estimate.

Three things are measured in a second or so: how fast pieces of the inputs come from the disk, how
fast the output's disk takes data, and how much computing each pass costs, by doing all of them on
invented models of one small tensor. What is left out: other work on this machine's cores, disks
that slow down under long writing, and starting up.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nan_merge.aligned import aligned_empty
from nan_merge.cost import Pass, list_passes
from nan_merge.dtypes import from_float32
from nan_merge.errors import NanMergeError
from nan_merge.layout import AlignedTensor
from nan_merge.measure import measure, merged_groups
from nan_merge.measured import method_of
from nan_merge.plan import MergePlan, plan_merge
from nan_merge.publish import staging_path
from nan_merge.recipe import CoefficientSpec, MergeRecipe
from nan_merge.safetensors_file import make_header
from nan_merge.shard import JOURNAL, ShardJob, merge_shards
from nan_merge.tasks import Task

PIECE_BYTES, SYNCED_BYTES = 1 << 20, 8 << 20
MOST_READ_BYTES, MOST_WRITTEN_BYTES = 64 << 20, 64 << 20
MOST_SECONDS = 0.25  # for each of reading and writing
PROBE_ELEMENTS = 1 << 22  # of all invented tensors together
WARM_ELEMENTS = 1 << 12  # more than one for each model, which has no variance
HASH_SECONDS_PER_BYTE = 2e-10
# Later passes find the inputs in memory if they leave room there.
CACHED_SHARE = 0.5


@dataclass(frozen=True)
class Speeds:
    """What a short measurement of this machine gave.

    Attributes:
        read: Bytes a second from the inputs' disk.
        write: Bytes a second to the output's disk, synced; None if it could not be written.
        compute: Label of a pass -> seconds of one core for each byte of input.
    """

    read: float
    write: float | None
    compute: dict[str, float]


@dataclass(frozen=True)
class PassEstimate:
    """One pass, and about how long it takes.

    Attributes:
        label: What for.
        read_bytes: How much it reads.
        written_bytes: How much it writes.
        seconds: About how long; None if it could not be tried out.
    """

    label: str
    read_bytes: int
    written_bytes: int
    seconds: float | None


def measure_speeds(plan: MergePlan, output: Path | None = None) -> Speeds:
    """Try this machine out for a moment; what is written is gone when this returns.

    Args:
        plan: What would be merged.
        output: Where the result would go; the current folder's disk is tried if None.
    """
    files = dict.fromkeys(file for tensor in plan.tensors for file in _files_of(tensor))
    return Speeds(read_speed(list(files)), write_speed(output or Path("x")), compute_costs(plan))


def _files_of(tensor: AlignedTensor) -> list[str]:
    return [info.path for info in tensor.inputs]


def read_speed(files: Sequence[str]) -> float:
    """Bytes a second, over pieces spread evenly over the files; memory counts where they are."""
    sizes = [Path(file).stat().st_size for file in files]
    step = max(PIECE_BYTES, PIECE_BYTES * sum(sizes) // MOST_READ_BYTES)
    places = [
        (file, start)
        for file, size in zip(files, sizes, strict=True)
        for start in range(0, size, step)
    ]
    buffer = aligned_empty((PIECE_BYTES,), np.uint8).data
    done, started = 0, time.perf_counter()
    # In strides, so that pieces from everywhere were read whenever time is up.
    for file, start in (place for stride in range(8) for place in places[stride::8]):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            done += os.preadv(descriptor, [buffer], start)
        finally:
            os.close(descriptor)
        if time.perf_counter() - started > MOST_SECONDS:
            break
    return max(done, 1) / max(time.perf_counter() - started, 1e-6)


def write_speed(output: Path) -> float | None:
    """Bytes a second that reach the disk of a folder that need not exist yet."""
    place = next(path for path in output.absolute().parents if path.is_dir())
    piece = aligned_empty((SYNCED_BYTES,), np.uint8)
    piece[:] = np.frombuffer(os.urandom(SYNCED_BYTES), np.uint8)
    try:
        with tempfile.TemporaryFile(dir=place, prefix=staging_path(output).name) as file:
            done, started = 0, time.perf_counter()
            while done < MOST_WRITTEN_BYTES and time.perf_counter() - started < MOST_SECONDS:
                done += os.write(file.fileno(), piece.data)
                os.fsync(file.fileno())  # piece by piece: a busy disk may take seconds for all
            return done / max(time.perf_counter() - started, 1e-6)
    except OSError:
        return None


def compute_costs(plan: MergePlan) -> dict[str, float]:
    """Label of a pass -> seconds of one core per byte of input, from doing it once.

    Empty if that failed, for want of a folder for temporary files, say.
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no disk to wait for
    with suppress(OSError, NanMergeError), tempfile.TemporaryDirectory(dir=memory) as folder:
        # The first time, loops are compiled and loaded.
        _try_out(plan, Path(folder) / "warm", WARM_ELEMENTS)
        small = _try_out(plan, Path(folder) / "small", PROBE_ELEMENTS // 8)
        large = _try_out(plan, Path(folder) / "large", PROBE_ELEMENTS)
        return {label: _seconds_per_byte(small[label], trial) for label, trial in large.items()}
    return {}


def _seconds_per_byte(small: tuple[float, int], large: tuple[float, int]) -> float:
    """From two trials, of seconds and bytes each, without what every trial costs."""
    (less, fewer_bytes), (more, num_bytes) = small, large
    if num_bytes == fewer_bytes:  # one row of many wide models is as large as a trial gets
        return more / num_bytes
    return max(more - less, 0.0) / (num_bytes - fewer_bytes)


def _try_out(plan: MergePlan, folder: Path, num_elements: int) -> dict[str, tuple[float, int]]:
    """Measure and merge invented models under the plan's recipe; seconds and bytes of each pass."""
    probe = plan_merge(_invent(plan, folder, num_elements))
    read_bytes = sum(tensor.input_bytes for tensor in probe.tensors)
    seconds: dict[str, float] = {}

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        started = time.process_time()  # what others do meanwhile does not count
        results = [task.function(*task.arguments) for task in tasks]
        label = tasks[0].label
        seconds[label] = seconds.get(label, 0.0) + time.process_time() - started
        return results

    (measured,) = measure([probe], run_tasks)
    (folder / JOURNAL).mkdir()
    job = ShardJob(probe.shards[0], probe.recipe, measured, str(folder))
    run_tasks([Task("merge", merge_shards, ([job],), read_bytes)])
    return {label: (spent, read_bytes) for label, spent in seconds.items()}


def _invent(plan: MergePlan, folder: Path, num_elements: int) -> MergeRecipe:
    """Models of one tensor that is called, typed and as wide as the plan's largest."""
    largest = max(
        (tensor for group in merged_groups(plan) for tensor in group),
        key=lambda tensor: tensor.reference.num_elements,
    )
    recipe = plan.recipe
    num_inputs = len(recipe.models) + 1
    width = min(largest.reference.shape[-1] if largest.reference.shape else 1, num_elements)
    height = max(1, num_elements // num_inputs // max(width, 1))
    generator = np.random.default_rng(0)
    shape, dtype = (height, max(width, 1)), largest.reference.stored_dtype
    values = generator.normal(0, 0.02, shape).astype(np.float32)
    paths: list[str] = []
    for place in range(num_inputs):
        change = generator.normal(0, 0.002, shape).astype(np.float32)
        own = values + change if place else values
        path = folder / str(place)
        path.mkdir(parents=True)
        header = make_header([(largest.name, dtype, shape)])
        (path / "model.safetensors").write_bytes(header + from_float32(own, dtype).tobytes())
        paths.append(str(path))
    spec = recipe.coefficients.model_dump(by_alias=True, exclude={"include", "exclude"})
    models = [
        model.model_copy(update={"path": path, "weight": 1.0})
        for model, path in zip(recipe.models, paths[1:], strict=True)
    ]
    changes = {
        "base": paths[0] if recipe.base is not None else None,
        "models": tuple(models),
        "coefficients": CoefficientSpec.model_validate(spec) if spec else recipe.coefficients,
        "missing": "error",
        "tokenizer": None,
        "num_layers": None,
        "shard_bytes": 1 << 40,
    }
    return recipe.model_copy(update=changes)


def estimate(plan: MergePlan, speeds: Speeds, workers: int) -> list[PassEstimate]:
    """About how long each pass of a merge takes with these speeds.

    The computing is shared out among the workers while the disk reads and writes; whichever takes
    longer counts.
    """
    passes = list_passes(plan)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cached = passes[0].read_bytes + plan.output_bytes < CACHED_SHARE * memory
    found: list[PassEstimate] = []
    for place, each in enumerate(passes):
        written = plan.output_bytes if each.label == "merge" else 0
        computing = _computing(each, speeds, min(workers, _most_workers(plan)))
        reading = 0.0 if place and cached else each.read_bytes / speeds.read
        writing = written / speeds.write if written and speeds.write else 0.0
        seconds = None if computing is None else max(computing, reading + writing)
        found.append(PassEstimate(each.label, each.read_bytes, written, seconds))
    return found


def _computing(each: Pass, speeds: Speeds, workers: int) -> float | None:
    if each.label == "fingerprints":
        return each.read_bytes * HASH_SECONDS_PER_BYTE
    cost = speeds.compute.get(each.label)
    return None if cost is None else each.read_bytes * cost / workers


def _most_workers(plan: MergePlan) -> int:
    """Pieces of work that a pass has: a method that takes whole tensors has no more than these."""
    if method_of(plan.recipe).unit == "element":
        return 1 << 30
    return max(1, len(plan.tensors))
