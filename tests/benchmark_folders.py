"""Questions made up for the tests, in the public layouts of the benchmarks."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from evaluators.benchmarks.bbh_tasks import MULTIPLE_CHOICE, TASKS
from evaluators.benchmarks.ceval_subjects import SUBJECTS as CEVAL_SUBJECTS
from evaluators.benchmarks.mmlu_subjects import SUBJECTS as MMLU_SUBJECTS

CEVAL_COLUMNS = ("id", "question", "A", "B", "C", "D", "answer", "explanation")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_mmlu(folder: Path, num_questions: int = 2) -> None:
    for subject in MMLU_SUBJECTS:
        for split, count in (("dev", 5), ("test", num_questions)):
            rows = [
                [f"{subject}: what is {number},\n{split}?", "1", "2", "3", "4", "ABCD"[number % 4]]
                for number in range(count)
            ]
            write_csv(folder / split / f"{subject}_{split}.csv", rows)


def write_ceval(folder: Path, blank_test: bool = False) -> None:
    for subject in CEVAL_SUBJECTS:
        for split, count in (("dev", 5), ("val", 2), ("test", 2)):
            rows = []
            for number in range(count):
                answer = "" if split == "test" and blank_test else "ABCD"[number % 4]
                options = [f"选项, {number} {letter}" for letter in "ABCD"]
                text = f"{subject} 的第{number}题，“换行”\n在这里____"
                rows.append([number, text, *options, answer, ""])
            write_csv(folder / split / f"{subject}_{split}.csv", [CEVAL_COLUMNS, *rows])


def write_bbh(folder: Path) -> None:
    for name in ("data", "lib_prompt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        if task in MULTIPLE_CHOICE:
            examples = [{"input": "Which?\nOptions:\n(A) one\n(B) two", "target": "(B)"}]
        else:
            examples = [{"input": "not ( True ) is", "target": "False"}]
        content = json.dumps({"canary": "made up", "examples": examples})
        (folder / "data" / f"{task}.json").write_text(content, encoding="utf-8")
        prompt = f"Solve {task}.\n\nQ: 1?\nA: Let's think step by step.\nSo the answer is 1."
        (folder / "lib_prompt" / f"{task}.txt").write_text(prompt, encoding="utf-8")


def write_gsm8k(folder: Path, num_questions: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    problems = [
        {"question": "What is 9 times 2?", "answer": "9*2=<<9*2=18>>18\n#### 18"},
        {"question": "And 500 times 2?", "answer": "It is 1,000\n#### 1,000"},
    ]
    problems += [
        {"question": f"What is {number} plus 1000?", "answer": f"#### {number + 1000:,}"}
        for number in range(2, num_questions)
    ]
    lines = [json.dumps(problem) for problem in problems[:num_questions]]
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
