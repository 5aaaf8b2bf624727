"""Results of other harnesses become records: same numbers, same verdicts, readable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nan_merge.errors import DataError
from pipelines.cli import app
from pipelines.language_command import import_command

STAMP = "2026-01-02T03-04-05.678901"


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def choice_row(number: int, target: int, values: list[float], right: float) -> dict:
    """As `lm_eval` writes a sample of a multiple-choice task."""
    return {
        "doc_id": number,
        "doc": {"question": "?"},
        "target": str(target),
        "arguments": {
            f"gen_args_{place}": {"arg_0": f"Question {number}\nAnswer:", "arg_1": f" {label}"}
            for place, label in enumerate("ABCD")
        },
        "resps": [[[str(value), "False"]] for value in values],
        "filtered_resps": [[str(value), "False"] for value in values],
        "filter": "none",
        "metrics": ["acc"],
        "acc": right,
    }


def written_row(number: int, filter_name: str, extracted: str, right: float) -> dict:
    """As `lm_eval` writes a sample of a task in which the model writes."""
    return {
        "doc_id": number,
        "doc": {"question": "?"},
        "target": "so 18\n#### 18",
        "arguments": {
            "gen_args_0": {"arg_0": f"Problem {number}", "arg_1": {"until": ["Question:"]}}
        },
        "resps": [["It is 18 \ud83d."]],
        "filtered_resps": [extracted],
        "filter": filter_name,
        "metrics": ["exact_match"],
        "exact_match": right,
    }


@pytest.fixture
def lm_eval(tmp_path: Path) -> Path:
    folder = tmp_path / "lm_eval" / "org__tiny"
    results = {
        "results": {"mmlu_anatomy": {"acc,none": 0.5}, "mmlu_virology": {"acc,none": 1.0}},
        "group_subtasks": {
            "mmlu": ["mmlu_stem", "mmlu_other"],
            "mmlu_stem": ["mmlu_anatomy"],
            "mmlu_other": ["mmlu_virology"],
            "gsm8k": [],
        },
        "configs": {"mmlu_anatomy": {}, "mmlu_virology": {}, "gsm8k": {}},
        "model_name": "org/tiny",
        "lm_eval_version": "0.4.13",
    }
    folder.mkdir(parents=True)
    (folder / f"results_{STAMP}.json").write_text(json.dumps(results))
    likely_b = [-4.0, -1.0, -3.0, -2.0]
    write_lines(
        folder / f"samples_mmlu_anatomy_{STAMP}.jsonl",
        [choice_row(0, 1, likely_b, 1.0), choice_row(1, 2, likely_b, 0.0)],
    )
    write_lines(folder / f"samples_mmlu_virology_{STAMP}.jsonl", [choice_row(0, 1, likely_b, 1.0)])
    write_lines(
        folder / f"samples_gsm8k_{STAMP}.jsonl",
        [
            written_row(0, "strict-match", "[invalid]", 0.0),
            written_row(0, "flexible-extract", "18", 1.0),
        ],
    )
    return folder.parent


@pytest.fixture
def opencompass(tmp_path: Path) -> Path:
    work = tmp_path / "outputs" / "20260102_030405"
    losses = {"A": 2.0, "B": 1.5, "C": 2.5, "D": 3.0}
    mmlu = {
        "0": {
            **{
                f"label: {label}": {"PPL": loss, "prompt": f"Q\nAnswer: {label}"}
                for label, loss in losses.items()
            },
            "prediction": "B",
            "gold": "B",
        },
        "1": {
            **{
                f"label: {label}": {"PPL": loss, "prompt": f"Q\nAnswer: {label}"}
                for label, loss in losses.items()
            },
            "prediction": "B",
            "gold": "D",
        },
    }
    parts = [
        {
            "0": {
                "origin_prompt": [{"role": "HUMAN", "prompt": "P0"}],
                "prediction": "18",
                "gold": "18",
            }
        },
        {"0": {"origin_prompt": "P1", "prediction": "no idea", "gold": "7"}},
    ]
    results = {
        "gsm8k": {
            "accuracy": 50.0,
            "details": [
                {"pred": "18", "answer": "18", "correct": True},
                {"pred": "", "answer": "7", "correct": False},
            ],
        },
        "lukaemon_mmlu_anatomy": {"accuracy": 50.0},
    }
    for name, content in {
        "lukaemon_mmlu_anatomy": mmlu,
        "gsm8k_0": parts[0],
        "gsm8k_1": parts[1],
    }.items():
        path = work / "predictions" / "tiny" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for name, content in results.items():
        path = work / "results" / "tiny" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return work.parent


def scores(folder: Path, output: Path) -> dict[tuple[str, str], dict]:
    with open("/dev/null", "w") as nowhere:  # noqa: PTH123
        import_command(folder, output, Console(file=nowhere))
    found = json.loads((output / "scores.json").read_text())
    return {(each["benchmark"], each["profile"]): each for each in found}


def test_lm_eval_results_keep_their_numbers(lm_eval, tmp_path):
    found = scores(lm_eval, tmp_path / "imported")
    assert set(found) == {
        ("mmlu", "none"),
        ("gsm8k", "strict-match"),
        ("gsm8k", "flexible-extract"),
    }
    mmlu = found["mmlu", "none"]
    assert {name: each["value"] for name, each in mmlu["subsets"].items()} == {
        "anatomy": 0.5,
        "virology": 1.0,
    }
    assert mmlu["average"]["value"] == 0.75
    assert mmlu["micro"]["value"] == pytest.approx(2 / 3)
    assert mmlu["source"] == "lm-evaluation-harness 0.4.13"
    assert mmlu["model"] == "tiny"
    strict = found["gsm8k", "strict-match"]
    assert (strict["average"]["value"], strict["abstain_rate"]) == (0.0, 1.0)
    assert found["gsm8k", "flexible-extract"]["average"]["value"] == 1.0


def test_opencompass_results_keep_their_numbers(opencompass, tmp_path):
    found = scores(opencompass, tmp_path / "imported")
    mmlu = found["mmlu", "20260102_030405"]
    assert mmlu["subsets"]["anatomy"]["value"] == 0.5
    gsm8k = found["gsm8k", "20260102_030405"]
    assert (gsm8k["average"]["value"], gsm8k["abstain_rate"]) == (0.5, 0.5)


def test_imported_predictions_are_shown_with_the_harness_own_verdicts(lm_eval, tmp_path):
    scores(lm_eval, tmp_path / "imported")
    shown = CliRunner().invoke(
        app, ["predictions", "show", str(tmp_path / "imported"), "--sample", "anatomy/1"]
    )
    assert shown.exit_code == 0, shown.output
    assert "anatomy/1: wrong" in shown.output
    assert "Question 1" in shown.output
    assert "extracted: B" in shown.output
    assert "gold: C" in shown.output
    assert "was shown another text" not in shown.output


def test_importing_twice_gives_the_same_records(lm_eval, tmp_path):
    scores(lm_eval, tmp_path / "imported")
    before = {path.name: path.read_bytes() for path in (tmp_path / "imported").rglob("*.json*")}
    scores(lm_eval, tmp_path / "imported")
    after = {path.name: path.read_bytes() for path in (tmp_path / "imported").rglob("*.json*")}
    assert before == after


def test_every_model_and_the_latest_of_every_task_are_taken(lm_eval, tmp_path):
    first = lm_eval / "org__tiny"
    # Another model in a folder of its own, older; and gsm8k of the first once more, later.
    other = Path(shutil.copytree(first, lm_eval / "org__other"))
    results = json.loads((other / f"results_{STAMP}.json").read_text())
    (other / f"results_{STAMP}.json").write_text(
        json.dumps(results | {"model_name": "org/other", "config": None})
    )
    later = f"{STAMP}9"
    once_more = {"results": {}, "configs": {"gsm8k": {}}, "model_name": "org/tiny"}
    (first / f"results_{later}.json").write_text(json.dumps(once_more))
    rows = [written_row(0, "strict-match", "18", 1.0)]
    write_lines(first / f"samples_gsm8k_{later}.jsonl", rows)
    scores(lm_eval, tmp_path / "imported")
    found = json.loads((tmp_path / "imported" / "scores.json").read_text())
    right = {
        (each["model"], each["benchmark"], each["profile"]): each["micro"]["value"]
        for each in found
    }
    assert right == {
        ("other", "gsm8k", "flexible-extract"): 1.0,
        ("other", "gsm8k", "strict-match"): 0.0,
        ("other", "mmlu", "none"): pytest.approx(2 / 3),
        ("tiny", "gsm8k", "strict-match"): 1.0,
        ("tiny", "mmlu", "none"): pytest.approx(2 / 3),
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: next(f.rglob("samples_gsm8k*")).unlink(), "--log_samples"),
        (lambda f: next(f.rglob("samples_gsm8k*")).write_text("{"), r"jsonl:1: is not JSON"),
        (lambda f: next(f.rglob("samples_gsm8k*")).write_text("{}\n"), "is no sample of"),
        (lambda f: next(f.rglob("results_*")).write_text("[]"), "is no results file"),
        (lambda f: next(f.rglob("samples_gsm8k*")).write_bytes(b"\xff"), "byte 0 is not UTF-8"),
        (
            lambda f: write_lines(
                next(f.rglob("samples_gsm8k*")),
                [{**written_row(0, "none", "18", 0.4)}],
            ),
            "comparisons need right or wrong",
        ),
    ],
)
def test_damaged_lm_eval_results_are_refused(lm_eval, tmp_path, damage, message):
    damage(lm_eval)
    with pytest.raises(DataError, match=message):
        scores(lm_eval, tmp_path / "imported")


def test_opencompass_results_without_verdicts_say_how_to_get_them(opencompass, tmp_path):
    path = next(opencompass.rglob("results/tiny/gsm8k.json"))
    path.write_text(json.dumps({"accuracy": 50.0}))
    with pytest.raises(DataError, match="--dump-eval-details"):
        scores(opencompass, tmp_path / "imported")
    path.unlink()
    with pytest.raises(DataError, match=r"gsm8k\.json is missing"):
        scores(opencompass, tmp_path / "imported")


def gsm8k_details(opencompass: Path, details: list[dict], accuracy: float = 50.0) -> None:
    path = next(opencompass.rglob("results/tiny/gsm8k.json"))
    path.write_text(json.dumps({"accuracy": accuracy, "details": details}))


@pytest.mark.parametrize(
    "details",
    [
        # Since 0.5: every value is a list, with an element for each time the sample was asked.
        [{"pred": ["18"], "correct": [True]}, {"pred": ["NULL"], "correct": [False]}],
        [{"pred": ["18"], "is_correct": [True]}, {"pred": [""], "is_correct": [False]}],
        # Plain accuracy names no verdicts.
        {
            "type": "GEN",
            "0": {"predictions": "18", "references": "18"},
            "1": {"predictions": "", "references": "7"},
        },
    ],
)
def test_opencompass_verdicts_are_read_in_all_their_forms(opencompass, tmp_path, details):
    gsm8k_details(opencompass, details)
    gsm8k = scores(opencompass, tmp_path / "imported")["gsm8k", "20260102_030405"]
    assert (gsm8k["average"]["value"], gsm8k["abstain_rate"]) == (0.5, 0.5)
    assert gsm8k["truncation_rate"] is None  # it does not write down how answers ended


@pytest.mark.parametrize(
    ("details", "accuracy", "message"),
    [
        (
            [{"pred": "18", "correct": True}, {"pred": "", "correct": False}],
            75.0,
            "own score is 75.00, but by its verdicts on the samples it is 50.00",
        ),
        (
            [{"pred": ["18", "1"], "correct": [True, False]}, {"pred": [""], "correct": [False]}],
            50.0,
            "sample 0 was asked 2 times",
        ),
        ([{"pred": "18"}, {"pred": ""}], 50.0, "sample 0 has no verdict"),
    ],
)
def test_opencompass_verdicts_that_make_no_score_are_refused(
    opencompass, tmp_path, details, accuracy, message
):
    gsm8k_details(opencompass, details, accuracy)
    with pytest.raises(DataError, match=message):
        scores(opencompass, tmp_path / "imported")


def test_a_folder_of_no_harness_is_told_so(tmp_path):
    result = CliRunner().invoke(app, ["import", str(tmp_path), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "is neither of lm-evaluation-harness" in result.output
