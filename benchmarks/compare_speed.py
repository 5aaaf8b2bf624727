"""Time a comparison of two runs of all benchmarks: 117,233 paired samples, 10,000 resamples.

    python benchmarks/compare_speed.py [FOLDER]

Writes two runs with invented answers of the benchmarks' real sizes to FOLDER (a temporary one if
absent): predictions of images for the eight sets of CLIP, records of answers with questions for
the language and vision-language benchmarks. Then it times `nan-merge compare` and `nan-merge gate`
as a user calls them, start-up, reading, pairing, tests, bootstrap and output included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluators.answers import Answer
from evaluators.predictions import Prediction, write_predictions
from pipelines.image_records import ImageRecordInfo, write_image_info
from pipelines.imported import ImportedBenchmark, ImportedQuestion, prompt_digest, write_imported
from pipelines.results import ResultRow, RunResults, write_results

IMAGES = {
    "sun397": 19_850, "cars": 8_041, "resisc45": 6_300, "eurosat": 2_700,
    "svhn": 26_032, "gtsrb": 12_630, "mnist": 10_000, "dtd": 1_880,
}  # fmt: skip
# Name -> samples and subsets, as published.
LANGUAGE = {
    "mmlu": (14_042, 57), "ceval": (1_346, 52), "bbh": (6_511, 27), "gsm8k": (1_319, 1),
    "mathvista": (1_000, 1), "wemath": (1_740, 1), "ai2d": (3_088, 1), "geoqa": (754, 1),
}  # fmt: skip
MODELS = {"baseline": 0.70, "candidate": 0.70}
CLUSTER_SIZE = 3  # images of a set that share a source, so that clusters are drawn too


def main() -> None:
    """Write the runs, time the commands, print seconds as JSON."""
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder))


def measure(folder: Path) -> None:
    """Print how long each command took, in seconds."""
    runs = [write_run(folder / model, model, number) for number, model in enumerate(MODELS)]
    output = folder / "comparison"
    seconds = {
        "start-up (--version)": timed("--version"),
        "compare": timed("compare", *map(str, runs), "--output", str(output)),
        "gate": timed(
            "gate", "--candidate", str(runs[1]), "--baseline", str(runs[0]), "--margin", "1",
            allowed=(0, 1, 3),
        ),
    }  # fmt: skip
    found = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    average = found["models"][1]["average"]
    print(
        json.dumps(
            {
                "paired samples": average["num_samples"],
                "benchmarks": len(found["benchmarks"]),
                "resamples": found["resamples"],
                "flipped samples": average["num_won"] + average["num_lost"],
                "seconds": seconds,
            },
            indent=1,
        )
    )


def timed(*arguments: str, allowed: tuple[int, ...] = (0,)) -> dict[str, float]:
    """Seconds of a command of `nan-merge`: of the clock, and of a processor."""
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True
    )
    if done.returncode not in allowed:
        raise SystemExit(f"nan-merge {' '.join(arguments)}: {done.stderr}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return {"wall": round(time.perf_counter() - begun, 2), "processor": round(processor, 2)}


def write_run(folder: Path, model: str, number: int) -> Path:
    """A finished run of one model that answered everything."""
    files: dict[str, str] = {}
    for place, (name, size) in enumerate(IMAGES.items()):
        right = verdicts(size, place, number, MODELS[model])
        files[name] = write_images(folder, model, name, right).relative_to(folder).as_posix()
    for place, (name, (size, subsets)) in enumerate(LANGUAGE.items(), start=len(IMAGES)):
        right = verdicts(size, place, number, MODELS[model])
        path = write_language(folder, model, name, subsets, right)
        files[name] = path.relative_to(folder).as_posix()
    rows = tuple(
        ResultRow(model, "merged", "ties", "", name, "accuracy", 0.7, 0.01, 1) for name in files
    )
    results = RunResults(name=model, seed=0, rows=rows, merges=(), predictions={model: files})
    write_results(replace(results, name=model), folder)
    return folder


def verdicts(size: int, place: int, number: int, accuracy: float) -> np.ndarray:
    """Right or wrong for every sample; models share what is easy, and differ on a tenth."""
    shared = np.random.default_rng(place).random(size) < accuracy
    own = np.random.default_rng([place, number]).random(size)
    return np.where(own < 0.9, shared, own < 0.9 + 0.1 * accuracy)


def write_images(folder: Path, model: str, name: str, right: np.ndarray) -> Path:
    """A record of predictions of images."""
    path = folder / "predictions" / f"{name}.jsonl"
    predictions = [
        Prediction(
            f"{name}/{i:06}", f"{name}/{i // CLUSTER_SIZE}", "yes", "yes" if ok else "no", -0.5
        )
        for i, ok in enumerate(right)
    ]
    info = ImageRecordInfo("key", model, name, "digest", "heads", {"torch": "2"})
    write_image_info(path, info)
    write_predictions(path, "key", predictions)
    return path


def write_language(
    folder: Path, model: str, name: str, num_subsets: int, right: np.ndarray
) -> Path:
    """A record of answers to multiple-choice questions, with its questions."""
    questions: list[ImportedQuestion] = []
    answers: list[Answer] = []
    for i, ok in enumerate(right):
        subset = f"subset{i % num_subsets}"
        sample_id, prompt = f"{subset}/{i}", f"Question {i} of {name}? " * 40
        labels = ("A", "B", "C", "D")
        extracted = "A" if ok else "B"
        questions.append(
            ImportedQuestion(sample_id, subset, prompt, labels, "A", extracted, bool(ok))
        )
        log_probabilities = (-0.5, -1.5, -2.0, -3.0) if ok else (-1.5, -0.5, -2.0, -3.0)
        answers.append(Answer(sample_id, prompt_digest(prompt), "", "choice", log_probabilities))
    found = ImportedBenchmark("harness", model, name, "default", questions, answers)
    return write_imported(found, folder / "predictions")


if __name__ == "__main__":
    main()
