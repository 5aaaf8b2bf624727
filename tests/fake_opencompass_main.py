"""A program that behaves like OpenCompass 0.5.4, as far as its files go; it asks nobody.

Every answer is "The answer is" and the right one, but for the last sample of a data set, whose
answer is empty. The file `behaviour` beside it says how it fails.
"""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
TRACEBACK = "Traceback (most recent call last):\n  File x\n"
ERROR = (
    "01/02 03:04:05 - OpenCompass - ERROR - api.py - _generate - 5 - Error code: 400 - too long\n"
)


class Program:
    def __init__(self, arguments: list[str]) -> None:
        self.config = Path(arguments[0]).read_text()
        work = Path(arguments[arguments.index("--work-dir") + 1])
        self.work = work / arguments[arguments.index("--reuse") + 1]
        self.behaviour = (HERE / "behaviour").read_text()
        self.num_asked = ast.literal_eval(self.find(r"num_asked = (.+)\n"))
        self.model = ast.literal_eval(self.find(r"\babbr=(.+),\n"))

    def find(self, pattern: str) -> str:
        found = re.search(pattern, self.config)
        assert found is not None, pattern
        return found[1]

    def run(self) -> None:
        assert os.environ["OPENAI_API_KEY"] and "PYTHONPATH" not in os.environ
        print("01/02 03:04:05 - OpenCompass - INFO - Current exp folder", flush=True)
        with (HERE / "calls").open("a") as calls:
            calls.write("gsm8k\n" if "gsm8k" in self.num_asked else "mmlu\n")
        self.fail_early()
        rows = ["dataset,version,metric,mode,model"]
        rows += [self.answer(*each) for each in self.num_asked.items()]
        if self.behaviour != "no summary":
            self.write("summary/summary_20260102_030405.csv", "\n".join(rows) + "\n")

    def fail_early(self) -> None:
        if self.behaviour == "exit":
            print(f"{TRACEBACK}ModuleNotFoundError: No module named 'mmengine'")
            sys.exit(3)
        if self.behaviour == "kill":
            os.kill(os.getpid(), 9)
        if self.behaviour == "hang":
            child = subprocess.Popen("sleep 600", shell=True)
            (HERE / "child").write_text(str(child.pid))
            time.sleep(600)
        if self.behaviour == "task fails":
            words = f"{ERROR * 3}{TRACEBACK}RuntimeError: Calling OpenAI API failed\n"
            self.write(f"logs/infer/{self.model}/first.out", words)

    def answer(self, dataset: str, number: int) -> str:
        """Write a data set's files; returns its row of the summary."""
        if self.behaviour == "task fails":
            return f"{dataset},-,-,-,-"
        golds = self.golds(dataset)[:number]
        if self.behaviour == "another order":
            golds.reverse()
        predictions, details = {}, []
        for place, gold in enumerate(golds):
            is_right = place < len(golds) - 1
            answer = gold.rpartition(" ")[2] if is_right else ""
            predictions[str(place)] = {
                "origin_prompt": [{"role": "HUMAN", "prompt": f"Question {place}?"}],
                "prediction": f"The answer is {answer}" if is_right else "",
                "gold": gold,
            }
            verdict = "correct" if dataset == "gsm8k" else "is_correct"
            details.append({"pred": [answer], verdict: [is_right]})
        score = 100 * (len(golds) - 1) / len(golds)
        results = {"accuracy": score, "details": details}
        self.write(f"predictions/{self.model}/{dataset}.json", json.dumps(predictions))
        self.write(f"results/{self.model}/{dataset}.json", json.dumps(results))
        shown = score + (self.behaviour == "another summary")
        return f"{dataset},abc123,accuracy,gen,{shown:.2f}"

    def golds(self, dataset: str) -> list[str]:
        data = Path(ast.literal_eval(self.find(r'item\["path"\] = (.+)\n')))
        if dataset == "gsm8k":
            lines = (data / "test.jsonl").read_text().splitlines()
            return [json.loads(line)["answer"] for line in lines]
        subject = dataset.removeprefix("lukaemon_mmlu_")
        with (data / "test" / f"{subject}_test.csv").open() as file:
            return [row[5] for row in csv.reader(file)]

    def write(self, name: str, text: str) -> None:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    Program(sys.argv[1:]).run()
