"""Measure what the simulator needs on this machine, with the engine itself.

A *worker* here is what it is on a cluster: one task on one core. Files are warm, as the
operating system keeps them after a first reading; what slower storage adds is the simulator's to
say. Computing is measured as processor time, which other work on the machine disturbs least; what
can only be measured by the clock is the best of some runs. Neither hides anything: predictions are
held against medians by the clock.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic_llama import shapes, write_family
from nan_merge.merge import merge_checkpoint
from nan_merge.plan import plan_merge
from nan_merge.publish import start_writeback
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import Task, run_serially

REPEATS = 3
PIECE = 16 << 20
SHARD_BYTES = 100_000_000  # so that a small model has several tasks, as a large one does
NUM_MODELS = 2
METHODS: dict[str, dict[str, Any]] = {
    "Task Arithmetic": {"method": "task_arithmetic", "coefficients": {"lambda": 0.3}},
    "TIES + NAN": {
        "method": {"name": "ties", "density": 0.2},
        "coefficients": {"source": "nan", "target": "task_vector"},
    },
}


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "packages": {name: version(name) for name in ("torch", "ray", "numpy", "nan-merge")},
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def recipe_of(folder: Path, name: str) -> MergeRecipe:
    """A recipe of METHODS over a synthetic family."""
    models = [str(folder / f"expert{number}") for number in range(NUM_MODELS)]
    content = {"base": str(folder / "base"), "models": models, "shard_bytes": SHARD_BYTES}
    return MergeRecipe.model_validate({**content, **METHODS[name]})


def family(folder: Path, size: str) -> Path:
    """A synthetic family in a folder of its own, written once."""
    write_family(folder / size, size, NUM_MODELS)
    return folder / size


# --- storage -----------------------------------------------------------------------------------


def _read(path: str) -> int:
    total = 0
    buffer = bytearray(PIECE)
    with Path(path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def _write(path: str, num_bytes: int) -> int:
    piece = os.urandom(PIECE)
    with Path(path).open("wb", buffering=0) as file:
        for offset in range(0, num_bytes, PIECE):
            file.write(piece)
            start_writeback(file.fileno(), offset, PIECE)  # as the engine does
        os.fsync(file.fileno())
    Path(path).unlink()
    return num_bytes


def _rate(call: Callable[..., int], arguments: Sequence[tuple[Any, ...]]) -> float:
    """Bytes per second of calls that run at the same time, one process each."""
    rates: list[float] = []
    with ProcessPoolExecutor(len(arguments), get_context("fork")) as pool:
        list(pool.map(abs, range(len(arguments))))  # start the processes
        for _ in range(REPEATS):
            started = time.perf_counter()
            done = [pool.submit(call, *each) for each in arguments]
            total = sum(each.result() for each in done)
            rates.append(total / (time.perf_counter() - started))
    return max(rates)


def _processor_seconds(call: Callable[[], int]) -> float:
    """Processor seconds per byte of a call that returns how many it moved."""
    found: list[float] = []
    for _ in range(REPEATS):
        started = time.process_time()
        moved = call()
        found.append((time.process_time() - started) / moved)
    return min(found)


def measure_storage(folder: Path) -> dict[str, float]:
    """Bytes per second of one process, and of one for each core together."""
    cores = os.cpu_count() or 1
    paths = [str(path) for path in sorted((folder / "0.3b").glob("*/model.safetensors"))]
    targets = [(str(folder / f"write{number}"), 500 << 20) for number in range(cores)]
    for path in paths:
        _read(path)  # warm
    read = _processor_seconds(lambda: _read(paths[0]))
    return {
        "worker_read": 1 / read,  # a warm file is read by the processor alone
        "worker_write": _rate(_write, targets[:1]),
        "all_read": _rate(_read, [(path,) for path in paths[:cores]]),
        "all_write": _rate(_write, targets),
        "read_processor_seconds_per_byte": read,
        "write_processor_seconds_per_byte": _processor_seconds(lambda: _write(*targets[0])),
    }


# --- merging -----------------------------------------------------------------------------------


def _timed_merge(folder: Path, name: str) -> tuple[list[tuple[str, float]], float]:
    """(label, processor seconds of all tasks) of each stage; seconds by the clock beside them."""
    stages: list[tuple[str, float]] = []
    inside = 0.0

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        nonlocal inside
        started, processor = time.perf_counter(), time.process_time()
        results = run_serially(tasks)
        stages.append((tasks[0].label, time.process_time() - processor))
        inside += time.perf_counter() - started
        return results

    output = folder / "merged"
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    merge_checkpoint(recipe_of(folder, name), output, run_tasks)
    seconds = time.perf_counter() - started
    shutil.rmtree(output)
    return stages, seconds - inside


def measure_method(folder: Path, name: str, storage: dict[str, float]) -> dict[str, Any]:
    """Seconds per input byte of each stage beyond reading and writing, and the serial part."""
    plan = plan_merge(recipe_of(family(folder, "0.3b"), name))
    runs = [_timed_merge(folder / "0.3b", name) for _ in range(REPEATS)]
    found: list[dict[str, Any]] = []
    for place, (label, _) in enumerate(runs[0][0]):
        seconds = min(run[0][place][1] for run in runs)
        moved = plan.input_bytes * storage["read_processor_seconds_per_byte"]
        if place == len(runs[0][0]) - 1:  # the last stage is the one that writes
            moved += plan.output_bytes * storage["write_processor_seconds_per_byte"]
        cost = max(0.0, seconds - moved) / plan.input_bytes
        found.append({"label": label, "seconds": seconds, "compute_seconds_per_byte": cost})
    small = [_timed_merge(family(folder, "10m"), name)[1] for _ in range(REPEATS)]
    serial = _line((len(shapes("10m")), min(small)), (len(shapes("0.3b")), min(r[1] for r in runs)))
    return {
        "stages": found,
        "serial": {"fixed": serial["fixed"], "per_tensor": serial["per_unit"]},
    }


def _line(first: tuple[int, float], second: tuple[int, float]) -> dict[str, float]:
    """Seconds = fixed + per unit * units, through two points; neither below zero."""
    slope = max(0.0, (second[1] - first[1]) / (second[0] - first[0]))
    return {"fixed": max(0.0, first[1] - slope * first[0]), "per_unit": slope}


# --- samples -----------------------------------------------------------------------------------


def classify(num_samples: int) -> None:
    """Build the quickstart's image tower and send images through it, on one thread."""
    from evaluators.backends.clip import build_clip

    torch.set_num_threads(1)
    tower = build_clip("nan-merge-mini", seed=0).tower
    images = torch.zeros(250, 3, tower.image_size, tower.image_size)
    with torch.inference_mode():
        for _ in range(num_samples // len(images)):
            tower.visual(images)


def _seconds_to_classify(num_samples: int) -> float:
    found: list[float] = []
    for _ in range(REPEATS):
        started = time.process_time()
        classify(num_samples)
        found.append(time.process_time() - started)
    return min(found)


def measure_samples(folder: Path) -> dict[str, Any]:
    """Costs of serving, on one thread: images by the quickstart's tower, tokens by a Llama.

    The Llama needs transformers, which the quickstart does not install; without it there is no
    prediction for language models.
    """
    classify(0)  # imports are not a cost of every task
    few, many = 1000, 11_000
    image = _line((few, _seconds_to_classify(few)), (many, _seconds_to_classify(many)))
    found: dict[str, Any] = {
        "image_fixed_seconds": image["fixed"],
        "image_seconds": image["per_unit"],
    }
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        return found
    logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return found | _measure_llama(family(folder, "0.3b") / "base", AutoModelForCausalLM)
    finally:
        torch.set_num_threads(before)


def _measure_llama(path: Path, auto: Any) -> dict[str, float]:
    prompt, new = 128, 8
    tokens = torch.arange(prompt)[None]
    loads: list[float] = []
    prefills: list[float] = []
    decodes: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        model = auto.from_pretrained(path, dtype=torch.bfloat16)
        loads.append(time.perf_counter() - started)
        with torch.inference_mode():
            model(tokens[:, :8])
            started = time.process_time()
            state = model(tokens, use_cache=True)
            prefills.append(time.process_time() - started)
            started = time.process_time()
            for token in range(new):
                step = torch.tensor([[token]])
                state = model(step, past_key_values=state.past_key_values, use_cache=True)
            decodes.append(time.process_time() - started)
    parameters = sum(weight.numel() for weight in model.parameters())
    num_bytes = (path / "model.safetensors").stat().st_size
    return {
        "load_seconds_per_byte": min(loads) / num_bytes,
        "prefill_seconds_per_token_and_parameter": min(prefills) / prompt / parameters,
        "decode_seconds_per_token_and_parameter": min(decodes) / new / parameters,
    }
