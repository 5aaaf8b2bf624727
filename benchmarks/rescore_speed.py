"""Time what scoring all of MMLU again takes: 14,042 stored answers, and no model.

    python benchmarks/rescore_speed.py [FOLDER] [--data MMLU] [--turns 3]

Writes records of a model that answered every question of MMLU, to FOLDER (a temporary one if
absent): by likelihood, and in writing of some sentences each. The answers are invented; the
questions are those of --data or $NAN_MERGE_DATA, or else invented ones, as many of each subject.
Then it times `nan-merge rescore` on each record as a user calls it, start-up included: by the
clock, and how long processors worked, which is less on a busy machine. The parts are timed by the
clock within one process that is warm: reading the questions, reading the answers, and scoring them
by one scorer (the command asks two).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from evaluators.answers import Answer
from evaluators.benchmarks.mmlu import question_path
from evaluators.benchmarks.mmlu_subjects import NUM_TEST_SAMPLES
from evaluators.language_evaluation import LanguageModelOptions
from evaluators.language_scores import judge, score_benchmark
from evaluators.predictions import write_predictions
from evaluators.samples import Sample
from pipelines.language_benchmarks import open_benchmark
from pipelines.language_config import BenchmarkSpec
from pipelines.language_records import Record, record_info, record_path, write_info
from pipelines.language_scores import benchmark_of

PROFILES = ("oc-ppl", "oc-gen-5shot")
NUM_SHOTS = 5
ENDS = ("The answer is {}.", "So it is ({}).", "**{}**", "ANSWER: {}", "I cannot tell.")
REASON = "The first two options name causes that were ruled out, and one of the others is older. "
T = TypeVar("T")


def main() -> None:
    """Write the records, score them again, print seconds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, default=os.environ.get("NAN_MERGE_DATA") or None)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        measure(arguments.folder, arguments.data, arguments.turns)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), arguments.data, arguments.turns)


def measure(folder: Path, data: Path | None, turns: int) -> None:
    """Print the median seconds of each part, and the lowest and the highest."""
    if data is None:
        invent_questions(folder / "data")
    told: dict[str, object] = {"questions": "invented" if data is None else "of a folder"}
    for profile in PROFILES:
        record = answer_all(folder / profile, data or folder / "data", profile)
        seconds: dict[str, list[float]] = {}
        for _ in range(turns):
            for part, found in (rescore(folder / profile) | parts(record)).items():
                seconds.setdefault(part, []).append(found)
        told[profile] = {
            "answers": len(record.answers()),
            "megabytes": round(record.path.stat().st_size / 1e6, 1),
            "seconds": {part: spread(found) for part, found in seconds.items()},
        }
    print(json.dumps(told, indent=1))


def spread(found: list[float]) -> list[float]:
    """Median, lowest and highest."""
    return [round(each, 2) for each in (statistics.median(found), min(found), max(found))]


def invent_questions(folder: Path) -> None:
    """As many questions of each subject as MMLU has, in its layout."""
    draw = random.Random(0)
    for subject, size in NUM_TEST_SAMPLES.items():
        for split, number in (("dev", NUM_SHOTS), ("test", size)):
            path = question_path(folder, split, subject)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(
                    [f"{REASON}What of {split} {each}?", *map(str, range(4)), draw.choice("ABCD")]
                    for each in range(number)
                )


def answer_all(folder: Path, data: Path, profile: str) -> Record:
    """The record of a model that answered everything, as `nan-merge evaluate` leaves it."""
    benchmark = open_benchmark(BenchmarkSpec(name="mmlu", profile=profile, data=data))
    options = LanguageModelOptions("transformers", "float32")
    info = record_info("invented", folder, {"weights": "none"}, benchmark, options)
    path = record_path(folder / "predictions", info)
    draw = random.Random(profile)
    write_info(path, info)
    write_predictions(path, info.key, [answer(sample, draw) for sample in benchmark.samples])
    return Record(path, info)


def answer(sample: Sample, draw: random.Random) -> Answer:
    """An invented one: log-probabilities of the choices, or some sentences."""
    digest, length = f"{draw.getrandbits(64):016x}", draw.randint(300, 900)
    if sample.choices:
        values = tuple(-3 * draw.random() for _ in sample.choices)
        return Answer(sample.id, digest, "", "choice", values, length)
    text = REASON * draw.randint(0, 8) + draw.choice(ENDS).format(draw.choice(sample.labels))
    return Answer(sample.id, digest, text, "stop", (), length, len(text) // 4)


def rescore(folder: Path) -> dict[str, float]:
    """Seconds of the command, by the clock and of processors."""
    command = [sys.executable, "-m", "pipelines.cli", "rescore", str(folder)]
    begun, worked = time.perf_counter(), processor_seconds()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    whole = time.perf_counter() - begun
    return {"nan-merge rescore": whole, "its processors": processor_seconds() - worked}


def processor_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parts(record: Record) -> dict[str, float]:
    """Seconds of what the command does, but for its start and what it prints."""
    questions, benchmark = timed(lambda: benchmark_of(record))
    reading, answers = timed(record.answers)
    profile = benchmark.profile
    scoring, _ = timed(
        lambda: score_benchmark(
            profile, judge(profile, benchmark.samples, answers, "compat"), "compat"
        )
    )
    return {"reading questions": questions, "reading answers": reading, "scoring": scoring}


def timed(act: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, and what it returned."""
    begun = time.perf_counter()
    found = act()
    return time.perf_counter() - begun, found


if __name__ == "__main__":
    main()
