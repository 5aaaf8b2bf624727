"""Language models answer once; scores, tables and views are made from the answers."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluators.torchvision_repair import repair
from nan_merge.errors import ConfigError, DataError
from pipelines import language_command
from pipelines.cli import app
from pipelines.language_benchmarks import open_benchmark
from pipelines.language_command import evaluate_command, rescore_command
from pipelines.language_config import BenchmarkSpec
from pipelines.language_evaluate import LanguageCandidate, answer_benchmarks
from pipelines.language_records import find_records
from tests.language_checkpoints import make_tiny_llama
from tests.language_evaluations import (
    TRANSFORMERS,
    Here,
    Killed,
    ask,
    copy_work,
    evaluate,
    gsm8k,
    make_work,
    silent_console,
)

repair()
pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("made"))


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copy_work(made, tmp_path, monkeypatch)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(language_command, "Workers", lambda *_: here)
    return here


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of few samples, so that there are many."""
    from pipelines import language_evaluate

    real = language_evaluate.language_shards
    monkeypatch.setattr(
        language_evaluate, "language_shards", lambda *a, **k: real(*a, **k, num_samples=2)
    )


def test_a_model_is_loaded_once_for_all_benchmarks_and_asked_nothing_twice(work, workers):
    records = ask(work, workers, "kept", BenchmarkSpec(name="mmlu"), gsm8k())
    assert workers.loaded == ["tiny"]
    assert len(workers.asked) == len(set(workers.asked)) == 57 + 6
    answers = records["tiny", "mmlu/oc-ppl"].answers()
    assert all(len(each.log_probabilities) == 4 for each in answers)
    again = ask(work, workers, "kept", BenchmarkSpec(name="mmlu"), gsm8k())
    assert workers.loaded == ["tiny"]
    assert again == records


def test_what_the_same_run_with_another_seed_answered_is_taken_over(work, workers):
    opened = [open_benchmark(gsm8k(), work / "data")]

    def answered(model: str, folder: str, *earlier: str):
        others = tuple(work / each for each in earlier)
        candidate = LanguageCandidate("tiny", str(work / model), work / folder, earlier=others)
        (record,) = answer_benchmarks(
            [candidate],
            opened,
            TRANSFORMERS.options(),
            workers,  # type: ignore[arg-type]
        ).values()
        return record

    first = answered("model", "seed0")
    workers.asked.clear()
    second = answered("model", "seed1", "none", "seed0")
    assert workers.asked == []
    assert second.path.read_bytes() == first.path.read_bytes()
    assert [each.path for each in find_records(work / "seed1")] == [second.path]
    # Other weights are asked, and the record of the first ones is not taken for theirs.
    make_tiny_llama(work / "drawn", seed=5)
    third = answered("drawn", "seed2", "seed0")
    assert len(workers.asked) == 6
    assert third.info.key != first.info.key


@pytest.mark.parametrize("killed_after", [0, 2, 3, 5])
def test_a_killed_evaluation_goes_on_at_the_shard_to_the_same_bytes(
    work, workers, few, killed_after
):
    (whole,) = ask(work, workers, "whole", gsm8k()).values()
    workers.asked.clear()
    workers.killed_after = killed_after
    with pytest.raises(Killed):
        ask(work, workers, "killed", gsm8k())
    workers.killed_after = 1_000_000
    (again,) = ask(work, workers, "killed", gsm8k()).values()
    assert len(workers.asked) == len(set(workers.asked)) == 6
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert {path.name for path in (work / "killed").iterdir()} == {
        path.name for path in (work / "whole").iterdir()
    }


def test_a_larger_limit_asks_only_for_the_rest(work, workers):
    ask(work, workers, "kept", gsm8k(limit=4))
    assert len(workers.asked) == 4
    (record,) = ask(work, workers, "kept", gsm8k()).values()
    assert len(workers.asked) == len(set(workers.asked)) == 6
    assert [each.sample_id for each in record.answers()] == workers.asked
    ask(work, workers, "kept", gsm8k(limit=1))
    assert len(workers.asked) == 6


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (
            "model/config.json",
            lambda text: text.replace('"rms_norm_eps"', '"x": 1, "rms_norm_eps"'),
        ),
        ("model/chat_template.jinja", lambda text: text + " "),
        ("data/gsm8k/test.jsonl", lambda text: text.replace("plus", "and")),
    ],
)
def test_another_config_template_or_question_is_another_record(work, workers, file, change):
    (first,) = ask(work, workers, "kept", gsm8k()).values()
    path = work / file
    path.write_text(change(path.read_text()))
    (second,) = ask(work, workers, "kept", gsm8k()).values()
    assert first.path != second.path
    assert first.path.is_file()  # nothing is written over
    assert len(workers.loaded) == 2


def test_the_table_has_averages_errors_and_rates_and_the_json_says_the_same(work, workers):
    found = evaluate(work, BenchmarkSpec(name="mmlu"), gsm8k())
    assert "mmlu oc-ppl (compat)" in found.text
    assert "mmlu-stem (compat)" in found.text
    scores = json.loads((work / "out" / "scores.json").read_text())
    first = scores[0]
    assert (first["benchmark"], first["profile"], first["scorer"]) == ("mmlu", "oc-ppl", "compat")
    assert first["average"]["num_samples"] == 57
    assert first["micro"]["value"] == pytest.approx(first["average"]["value"])
    written = next(each for each in scores if each["benchmark"] == "gsm8k")
    (record,) = [each for each in find_records(work / "out") if each.info.benchmark == "gsm8k"]
    cut_off = [each.finish_reason == "length" for each in record.answers()]
    assert written["truncation_rate"] == sum(cut_off) / 6 > 0


def test_the_folder_where_one_stands_is_called_by_its_name(work, workers, monkeypatch):
    monkeypatch.chdir(work / "model")
    console = silent_console()
    evaluate_command(".", [gsm8k(limit=1)], TRANSFORMERS, console, data=work / "data")
    assert (work / "model" / "runs" / "evaluations" / "model" / "scores.json").is_file()
    assert "model" in console.export_text().splitlines()[0]


def test_subsets_have_scores_of_their_own_and_no_average(work, workers):
    found = evaluate(work, BenchmarkSpec(name="mmlu", subsets=("anatomy", "virology")))
    assert len(workers.asked) == 2
    assert found.scored[0].scores.average is None
    assert "no average, because 55 subsets were not asked" in found.text
    assert "anatomy (compat)" in found.text
    assert json.loads((work / "out" / "scores.json").read_text())[0]["average"] is None


def test_a_missing_subset_is_refused_before_a_model_is_loaded(work, workers):
    (work / "data" / "mmlu" / "test" / "anatomy_test.csv").unlink()
    with pytest.raises(DataError, match=r"anatomy_test\.csv missing"):
        evaluate(work, BenchmarkSpec(name="mmlu"))
    assert workers.loaded == []


def test_broken_data_names_the_file_and_the_line(work, workers):
    path = work / "data" / "mmlu" / "test" / "anatomy_test.csv"
    path.write_bytes(path.read_bytes().replace(b"anatomy", b"\xff\xfe", 1))
    with pytest.raises(DataError, match=r"anatomy_test\.csv:1: byte \d+ is not UTF-8"):
        evaluate(work, BenchmarkSpec(name="mmlu"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "mmul"}, r"No benchmark is called 'mmul'.*did you mean 'mmlu'"),
        ({"name": "mmlu", "profile": "oc-pl"}, r"mmlu has no profile 'oc-pl'.*did you mean"),
        (
            {"name": "mmlu", "subsets": ["anatomi"]},
            r"no subset 'anatomi', have .*; did you mean 'anatomy'\?$",
        ),
        (
            {"name": "mmlu", "subsets": ["zz"]},
            r"no subset 'zz', have .*virology, world_religions\.$",
        ),
    ],
)
def test_unknown_names_are_told_with_what_is_near(work, workers, spec, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(work, BenchmarkSpec.model_validate(spec))


def test_a_score_of_one_sample_has_an_unknown_error(work, workers):
    found = evaluate(work, BenchmarkSpec(name="mmlu"), gsm8k(limit=1))
    scores = json.loads((work / "out" / "scores.json").read_text())
    errors = {each["benchmark"]: each["average"]["standard_error"] for each in scores}
    assert errors["gsm8k"] is None
    assert errors["mmlu"] is not None
    assert scores[0]["subsets"]["anatomy"]["standard_error"] is None
    assert " ± — " in found.text
    assert "± —: not known, because one sample alone shows no spread." in " ".join(
        found.text.split()
    )


def test_half_a_surrogate_pair_in_the_data_is_asked_kept_and_shown(work, workers):
    path = work / "data" / "gsm8k" / "test.jsonl"
    path.write_text(path.read_text().replace("What is 9", "\\ud83d is 9"))
    evaluate(work, gsm8k())
    assert len(workers.asked) == 6
    shown = CliRunner().invoke(
        app, ["predictions", "show", str(work / "out")], catch_exceptions=False
    )
    assert shown.exit_code == 0
    assert "? is 9 times 2?" in shown.output
    assert "was shown another text" not in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", ","], "--benchmarks names none"),
        (["--benchmarks", "gsm8k", "--device", "tpu"], "'tpu' is not one of"),
        (["--benchmarks", "gsm8k", "--profile", "oc"], "expected BENCHMARK=PROFILE"),
    ],
)
def test_mistakes_on_the_command_line_are_told(work, arguments, message):
    result = CliRunner().invoke(app, ["evaluate", str(work / "model"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_an_empty_completion_is_a_counted_abstention(work, workers, monkeypatch):
    evaluate(work, gsm8k())
    (record,) = find_records(work / "out")
    header, *lines = record.path.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row |= {"completion": "7", "finish_reason": "length", "num_tokens": 8}
    rows[0] |= {"completion": "", "finish_reason": "stop", "num_tokens": 1}
    record.path.write_text("\n".join([header, *map(json.dumps, rows)]) + "\n")
    (strict, *_) = rescore_command(work / "out", None, silent_console())
    assert strict.scores.abstain_rate == 1 / 6
    assert strict.scores.truncation_rate == 5 / 6


def test_a_changed_scorer_changes_scores_without_asking(work, workers, monkeypatch):
    evaluate(work, BenchmarkSpec(name="mmlu"))
    before = json.loads((work / "out" / "scores.json").read_text())
    from dataclasses import replace

    from evaluators.profiles import Verdict
    from pipelines import language_benchmarks

    real = language_benchmarks.find_profile
    monkeypatch.setattr(
        language_benchmarks,
        "find_profile",
        lambda *names: replace(
            real(*names), scorers={"compat": lambda sample, answer: Verdict(sample.gold, True)}
        ),
    )
    monkeypatch.setattr(language_command, "Workers", None)
    result = CliRunner().invoke(app, ["rescore", str(work / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    after = json.loads((work / "out" / "scores.json").read_text())
    assert before[0]["average"]["value"] < after[0]["average"]["value"] == 1.0


def test_rescoring_refuses_data_that_has_changed(work, workers):
    evaluate(work, BenchmarkSpec(name="mmlu"))
    path = work / "data" / "mmlu" / "test" / "anatomy_test.csv"
    rows = list(csv.reader(path.open()))
    rows[0][5] = "D"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(DataError, match="its content has changed"):
        rescore_command(work / "out", None, silent_console())


def test_predictions_are_shown_as_a_person_would_read_them(work, workers):
    evaluate(work, BenchmarkSpec(name="mmlu"), gsm8k())
    shown = CliRunner().invoke(
        app, ["predictions", "show", str(work / "out"), "--sample", "anatomy/0"]
    )
    assert shown.exit_code == 0, shown.output
    assert "anatomy/0: " in shown.output
    assert "anatomy: what is 0," in shown.output
    assert "log-probabilities: A -" in shown.output
    assert "gold: A" in shown.output
    assert "was shown another text" not in shown.output
    wrong = CliRunner().invoke(
        app,
        ["predictions", "show", str(work / "out"), "--benchmark", "gsm8k", "--wrong", "--limit=1"],
    )
    assert "completion:" in wrong.output
    assert ": right" not in wrong.output
    nothing = CliRunner().invoke(app, ["predictions", "show", str(work / "out"), "--sample", "x"])
    assert nothing.exit_code == 2
    assert "holds no answer to a sample x" in nothing.output


def test_a_folder_without_predictions_is_told_so(tmp_path):
    result = CliRunner().invoke(app, ["rescore", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no predictions of language models" in result.output


OWN = """\
name: capitals
questions: capitals.jsonl
prompt: "Capital of {{ land }}? {{ a }} or {{ b }}?"
gold: "{{ answer }}"
choices: [" A", " B"]
labels: [A, B]
"""


def test_a_benchmark_of_ones_own_is_evaluated_and_rescored(work, workers):
    file = work / "own" / "capitals.yaml"
    file.parent.mkdir()
    file.write_text(OWN)
    rows = [{"land": f"land {n}", "a": "x", "b": "y", "answer": "AB"[n % 2]} for n in range(3)]
    (file.parent / "capitals.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    profile = open_benchmark(BenchmarkSpec(name=str(file))).profile  # tables beside the file
    assert (profile.benchmark, profile.name) == ("capitals", "custom")
    shutil.copy(file.parent / "capitals.jsonl", work / "data")
    scored = evaluate(work, BenchmarkSpec(name=str(file))).scored
    assert scored[0].scores.micro.num_samples == 3
    asked = list(workers.asked)
    result = CliRunner().invoke(app, ["rescore", str(work / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "capitals custom" in result.output
    assert workers.asked == asked
    with pytest.raises(ConfigError, match="has no profile 'oc-ppl'"):
        open_benchmark(BenchmarkSpec(name=str(file), profile="oc-ppl"))


def test_verifying_data_names_what_is_not_as_published(work, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = CliRunner().invoke(app, ["data", "verify", str(work / "data")])
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert "gsm8k 1 6 1,319" in text
    assert "test.jsonl: has 6 questions, 1319 are published" in text
    result = CliRunner().invoke(app, ["data", "verify", str(work / "model")])
    text = " ".join(result.output.split())
    assert "holds no folder of a benchmark (mmlu, ceval, bbh, gsm8k, mathvista, wemath," in text
