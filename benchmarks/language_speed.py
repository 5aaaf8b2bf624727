"""Speed of language evaluation, against lm-evaluation-harness and against bare vLLM.

    python benchmarks/language_speed.py MODEL --data DATA --lm-eval LM_EVAL_PYTHON

MODEL is a checkpoint folder, DATA holds mmlu/{dev,test}/SUBJECT_{dev,test}.csv. The harness has
pins of its own: install `lm-eval[hf]==0.4.13` into another environment and give the path of its
python; without it only our side is measured.

Choices: 5-shot MMLU by the log-probability of the answer's letter. Every side gets the same prompts
as text, and is timed from there to its numbers, tokenising included, loading the model not. The
harness runs its `hf` backend at the batch size that is best on a part of the samples. Its choices
are compared with ours, sample by sample.

Writing: 64 tokens at most to the same questions through the chat template, against
`vllm.LLM.generate` with the rendered text. Both engines start anew for every round, with the same
dtype and as eager as each other, and warm up on a few prompts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import Measured, in_turn, ratios, run

HERE = Path(__file__).parent
SUBJECTS = ("anatomy", "astronomy", "college_biology", "global_facts")
CHOICES = [" A", " B", " C", " D"]
GOALS = {"choices": 6.0, "writing": 0.95}


def mmlu(data: Path, subject: str, num_samples: int) -> list[dict[str, Any]]:
    """The first samples of a subject, each with five solved examples before it."""
    rows: dict[str, list[list[str]]] = {}
    for split in ("dev", "test"):
        path = data / "mmlu" / split / f"{subject}_{split}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            rows[split] = list(csv.reader(file))
    about = subject.replace("_", " ")
    lead = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    lead += "".join(f"{question(row)} {row[5]}\n\n" for row in rows["dev"])
    return [
        {"id": f"{subject}/{n}", "subset": subject, "lead": lead, "question": question(row)}
        for n, row in enumerate(rows["test"][:num_samples])
    ]


def question(row: Sequence[str]) -> str:
    """A question with its options, up to the answer."""
    options = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", row[1:5], strict=True))
    return f"{row[0]}\n{options}Answer:"


class Side:
    """One way to do the work, in a process of its own."""

    def __init__(self, python: str, script: str, job: dict[str, Any], work: Path) -> None:
        self._command = [python, str(HERE / script)]
        self._job, self._work = job, work
        self.answers: list[Any] = []

    def __call__(self, **changes: Any) -> tuple[float, float]:
        """Seconds of the work alone, and megabytes of the whole process."""
        job = self._work / "job.json"
        job.write_text(json.dumps(self._job | changes))
        _, megabytes, output = run([*self._command, str(job)], self._work / "cache")
        found = json.loads(output.splitlines()[-1])
        self.answers = found["answers"]
        return float(found["seconds"]), megabytes


def best_batch_size(side: Side, samples: Sequence[Any], sizes: Sequence[int]) -> int:
    """The batch size at which the harness is fastest on every fourth sample."""
    part = list(samples[::4]) or list(samples)
    seconds = {size: side(samples=part, batch_size=size)[0] for size in sizes}
    told = ", ".join(f"{size}: {len(part) / each:.1f}" for size, each in seconds.items())
    print(f"  lm-eval's samples/s by batch size, on {len(part)} samples: {told}", flush=True)
    return min(seconds, key=lambda size: seconds[size])


def print_rates(found: dict[str, Measured], num_samples: int, unit: str) -> None:
    """A line per side."""
    for name, measured in found.items():
        rates = sorted(num_samples / each for each in measured.seconds)
        middle = statistics.median(rates)
        print(f"  {name:24} {middle:7.1f} {unit}/s ({rates[0]:.1f} to {rates[-1]:.1f})", flush=True)


def measure_choices(arguments: argparse.Namespace, job: dict[str, Any], work: Path) -> None:
    """Multiple choice by likelihood, on every backend and on the harness."""
    samples = job["samples"]
    sides = {
        f"nan-merge, {backend}": Side(
            sys.executable, "language_side.py", job | {"side": "choices", "backend": backend}, work
        )
        for backend in arguments.backend
    }
    if arguments.lm_eval:
        harness = Side(arguments.lm_eval, "lm_eval_side.py", job, work)
        size = best_batch_size(harness, samples, arguments.batch_sizes)
        sides["lm-eval hf"] = Side(
            arguments.lm_eval, "lm_eval_side.py", job | {"batch_size": size}, work
        )
    print(f"choices: {len(samples)} samples of {len(arguments.subject)} subjects, 5-shot")
    found = in_turn(sides, arguments.runs, arguments.warm_ups)
    print_rates(found, len(samples), "samples")
    if arguments.lm_eval:
        theirs = sides["lm-eval hf"].answers
        for name, side in sides.items():
            if side is sides["lm-eval hf"]:
                continue
            values = ratios(found["lm-eval hf"], found[name])
            print_ratio(f"{name} over lm-eval hf", values, GOALS["choices"])
            alike = sum(one == other for one, other in zip(side.answers, theirs, strict=True))
            print(f"  {name} and lm-eval hf choose alike on {alike} of {len(theirs)} samples")


def measure_writing(arguments: argparse.Namespace, job: dict[str, Any], work: Path) -> None:
    """Answers of at most 64 tokens, against bare vLLM."""
    job = job | {"samples": job["samples"][: arguments.num_written], "max_tokens": 64}
    sides = {
        name: Side(
            sys.executable, "language_side.py", job | {"side": side, "backend": "vllm"}, work
        )
        for name, side in (("nan-merge, vllm", "writing"), ("vllm.LLM.generate", "bare"))
    }
    print(f"writing: {len(job['samples'])} prompts, 64 tokens at most")
    found = in_turn(sides, arguments.runs, arguments.warm_ups)
    print_rates(found, len(job["samples"]), "answers")
    values = ratios(found["vllm.LLM.generate"], found["nan-merge, vllm"])
    print_ratio("nan-merge over vllm.LLM.generate", values, GOALS["writing"])
    mine, theirs = (side.answers for side in sides.values())
    alike = sum(one == other for one, other in zip(mine, theirs, strict=True))
    print(f"  equal answers: {alike} of {len(mine)}")


def print_ratio(text: str, values: list[float], goal: float) -> None:
    """Median and spread of a ratio of speeds, and what it should be."""
    middle = statistics.median(values)
    spread = f"({values[0]:.2f} to {values[-1]:.2f})"
    print(f"  {text}: {middle:.2f} {spread}; goal: at least {goal:g}", flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("NAN_MERGE_DATA"))
    parser.add_argument("--lm-eval", help="path of a python that has lm-eval")
    parser.add_argument("--backend", nargs="+", default=["vllm", "transformers"])
    parser.add_argument("--subject", nargs="+", default=list(SUBJECTS))
    parser.add_argument("--limit", type=int, default=100, help="samples of each subject")
    parser.add_argument("--num-written", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--compiled", action="store_true", help="let vLLM compile the model")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-ups", type=int, default=0)
    parser.add_argument("--part", nargs="+", default=list(GOALS), choices=list(GOALS))
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data, or set NAN_MERGE_DATA")
    job = {
        "model": str(arguments.model),
        "dtype": arguments.dtype,
        "eager": not arguments.compiled,
        "choices": CHOICES,
        "samples": [
            sample
            for subject in arguments.subject
            for sample in mmlu(Path(arguments.data), subject, arguments.limit)
        ],
    }
    cores = len(os.sched_getaffinity(0))
    print(f"{arguments.model}, {arguments.dtype}, {arguments.runs} rounds, {cores} cores")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if "choices" in arguments.part:
            measure_choices(arguments, job, work)
        if "writing" in arguments.part:
            measure_writing(arguments, job, work)


if __name__ == "__main__":
    main()
