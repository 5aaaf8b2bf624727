"""The quickstart's image sets in the cache: made on workers, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluators.quickstart_images import image_set_path, load_quickstart_task
from nan_merge.tasks import Task
from pipelines.workers import Workers


def data_folder(cache: Path) -> Path:
    """Where prepared image sets are kept."""
    return cache / "data"


def prepare_sets(
    names: Sequence[str], split: str, seed: int, data: Path, workers: Workers
) -> dict[str, Path]:
    """Files of image sets, built where they are missing."""
    paths = {name: image_set_path(name, split, seed, data) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    tasks = [Task(f"{name}/{split}", build_data, (name, split, seed, data), 1) for name in missing]
    workers.run_tasks(f"Preparing {split} images", tasks)
    return paths


def build_data(task: str, split: str, seed: int, data: Path) -> None:
    """Task body: build one image set into the cache."""
    load_quickstart_task(task, split, seed=seed, cache=data)
