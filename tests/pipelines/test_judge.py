"""A judge reads answers in which the rules find none; its scores never pass for those without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluators.answers import Answer
from evaluators.backends.language import Completion
from evaluators.benchmarks import PROFILES
from evaluators.judge import NO_ANSWER, Readings, count_readings, request_of, short_answer
from evaluators.language_evaluation import OpenLanguageModel
from evaluators.predictions import write_predictions
from evaluators.profiles import Decoding
from evaluators.rendering import load_tokenizer
from nan_merge.errors import DataError
from pipelines import language_command, language_evaluate
from pipelines.cli import app
from pipelines.compare import compare_runs
from pipelines.compared_models import AnswerReader, find_models
from pipelines.gate_command import evaluate_gate
from pipelines.gate_config import Gate
from pipelines.judging import JudgeSpec
from pipelines.language_benchmarks import open_benchmark
from pipelines.language_command import rescore_command
from pipelines.language_config import BackendSpec, BenchmarkSpec
from pipelines.language_records import find_extractions, find_records
from pipelines.pairing import pair
from tests.language_checkpoints import HAS_SMOLLM2, make_tiny_llama, smollm2
from tests.language_evaluations import (
    TRANSFORMERS,
    Here,
    Killed,
    keep_evaluation,
    set_environment,
    silent_console,
)
from tests.picture_folders import COLOURS, write_ai2d, write_mathvista

pytest.importorskip("transformers", reason="transformers is not installed")

NUM = 8  # of MathVista: twice a choice, an integer, a number with two decimals, a list
# How each is answered, and what the stand-in of a judge says then. The golds are red, 2, 1.5,
# [1, 2], green, 1, 1.5, [1, 2].
ANSWERS = (
    ("I would say it is the very first one.", "A"),
    ("The answer is 2", None),  # the rules read it
    ("one and a half", "Final answer: 1.50\nbecause it says so"),
    ("one, then two", "[1, 2]"),
    ("The picture is missing.", "No answer."),
    ("a single one", "7"),
    ("", None),  # nothing to read
    ("no idea", ""),
)
NAME = "mathvista-offline-v1-judge:judge"


class StandIn:
    """Says what `ANSWERS` has it say; counts."""

    max_length = 100_000

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.num_asked = tokenizer, 0

    def generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Completion]:
        said: list[Completion] = []
        for ids in prompts:
            response = self.tokenizer.decode(ids).rpartition("Response:\n")[2].partition("\n\n")[0]
            (text,) = {text for answer, text in ANSWERS if answer == response}
            said.append(Completion(text or "", "stop", 3))
            self.num_asked += 1
        return said

    def close(self) -> None:
        pass


def evaluation(folder: Path, data: Path, model: str, answers: Sequence[str]) -> Path:
    """A finished evaluation of MathVista, as `nan-merge evaluate` leaves it."""
    opened = open_benchmark(BenchmarkSpec(name="mathvista", data=data))
    given = [
        Answer(sample.id, sample.id, text, "stop", num_tokens=len(text))
        for sample, text in zip(opened.samples, answers, strict=True)
    ]
    keep_evaluation(folder, opened, data, model, f"{model}-key", given)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    write_mathvista(folder / "data", NUM)
    make_tiny_llama(folder / "judge")
    evaluation(folder / "out", folder / "data", "merged", [answer for answer, _ in ANSWERS])
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_environment(tmp_path, monkeypatch)
    shutil.copytree(made / "out", tmp_path / "out")
    shutil.copytree(made / "judge", tmp_path / "judge")
    (tmp_path / "data").symlink_to(made / "data")
    return tmp_path


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()

    def load(folder: str, _options: object) -> OpenLanguageModel:
        tokenizer = load_tokenizer(Path(folder))
        return OpenLanguageModel(Path(folder), StandIn(tokenizer), tokenizer)  # type: ignore[arg-type]

    monkeypatch.setattr(language_command, "Workers", lambda *_: here)
    monkeypatch.setattr(language_evaluate, "open_language_model", load)
    return here


def judged(work: Path, folder: str = "out", judge: str | None = "judge"):
    spec = JudgeSpec(str(work / judge), TRANSFORMERS) if judge is not None else None
    console = silent_console()
    scored = rescore_command(work / folder, None, console, spec)
    return {each.scores.profile: each for each in scored}, console.export_text()


def test_the_judge_reads_what_the_rules_leave_open_and_the_rule_compares_it(work, workers):
    found, text = judged(work)
    plain, by_judge = found["mathvista-offline-v1"], found[NAME]
    assert plain.scores.micro.value == 1 / NUM
    assert plain.scores.abstain_rate == 7 / NUM
    # Read: A and 1.50 and [1, 2] are right, 7 is wrong; "no answer" and nothing are abstentions.
    assert by_judge.scores.micro.value == 4 / NUM
    assert by_judge.scores.abstain_rate == 3 / NUM
    assert len(workers.asked) == 6
    assert "of 8 answers the rules leave 6 open; the judge judge reads an answer in 4" in text
    assert "4 times one that does not stand there in the same words" in " ".join(text.split())
    assert f"mathvista {NAME} (strict)" in text
    assert "mathvista: type: choice (strict)" in text and f"{NAME}: type: choice (strict)" in text
    first, second = json.loads((work / "out" / "scores.json").read_text())
    assert (first["profile"], first["judge"]) == ("mathvista-offline-v1", None)
    assert (second["profile"], second["judge"]["model"]) == (NAME, "judge")
    assert second["judge"]["engine"]["backend"] == "transformers"


def test_nothing_is_asked_twice_and_another_judge_is_another_record(work, workers):
    first, _ = judged(work)
    again, _ = judged(work)
    without, _ = judged(work, judge=None)  # what was read before counts without a model
    assert len(workers.asked) == 6 and workers.loaded == ["judge"]
    assert first[NAME].scores == again[NAME].scores == without[NAME].scores
    assert len(find_records(work / "out")) == 1
    make_tiny_llama(work / "other" / "judge", seed=9)
    both, _ = judged(work, judge="other/judge")
    assert len(workers.asked) == 12
    names = {each for each in both if each.startswith(NAME)}
    assert len(names) == 2 and all(each.startswith(f"{NAME}@") for each in names)


@pytest.mark.parametrize("killed_after", [0, 3, 5])
def test_killed_it_goes_on_at_the_shard_to_the_same_bytes(work, workers, monkeypatch, killed_after):
    shutil.copytree(work / "out", work / "whole")
    judged(work, "whole")
    real = language_evaluate.language_shards
    monkeypatch.setattr(
        language_evaluate, "language_shards", lambda *a, **k: real(*a, **k, num_samples=1)
    )
    workers.asked.clear()
    workers.killed_after = killed_after
    with pytest.raises(Killed):
        judged(work)
    partly, _ = judged(work, judge=None)
    assert list(partly) == ["mathvista-offline-v1"]  # what was read by half has no score
    workers.killed_after = 1_000_000
    judged(work)
    assert len(workers.asked) == len(set(workers.asked)) == 6
    (one,), (two,) = (find_extractions(work / name) for name in ("out", "whole"))
    assert one.path.read_bytes() == two.path.read_bytes()


def test_an_answer_that_changed_is_read_again_and_never_scored_by_what_was_said_of_another(
    work, workers
):
    judged(work)
    (record,) = find_records(work / "out")
    answers = [
        replace(each, completion="no idea") if each.sample_id == "mathvista/1" else each
        for each in record.answers()
    ]
    write_predictions(record.path, record.info.key, answers)
    found, text = judged(work, judge=None)
    assert NAME not in found and "has not read all answers" in text
    reader = AnswerReader(judge="judge")
    (model,) = find_models(work / "out")
    with pytest.raises(DataError, match="has not read the answer to mathvista/1"):
        reader.read(reader.view(model), "mathvista-judge:judge")
    found, _ = judged(work)
    assert len(workers.asked) == 7
    assert found[NAME].scores.micro.value == 3 / NUM


def test_a_record_that_leaves_nothing_open_has_a_score_with_the_judge_too(work, workers):
    evaluation(work / "sure", work / "data", "sure", ["The answer is 1"] * NUM)
    texts = ["(A)", "The answer is 2", "1.5", "[1, 2]"] * 2
    shutil.rmtree(work / "sure")
    evaluation(work / "sure", work / "data", "sure", texts)
    found, _ = judged(work, "sure")
    assert workers.loaded == []
    assert found[NAME].scores.micro == found["mathvista-offline-v1"].scores.micro


def test_comparisons_and_gates_count_the_judge_on_both_sides_or_on_none(work, workers):
    evaluation(work / "base", work / "data", "base", [""] * NUM)
    judged(work)
    folders = [work / "base", work / "out"]
    plain = compare_runs(folders, None, AnswerReader(), 100)
    assert plain.benchmarks == ("mathvista",)
    assert plain.models[1].scores == {"mathvista": 1 / NUM}
    with pytest.raises(DataError, match=r"base: a judge judge has not read these answers, no jud"):
        compare_runs(folders, None, AnswerReader(judge="judge"), 100)
    gate = Gate(candidate=str(work / "out"), baseline=str(work / "base"), margin=1.0)
    with pytest.raises(DataError, match=r"`nan-merge rescore .*base --judge MODEL` asks one"):
        evaluate_gate(gate, None, AnswerReader(judge="judge"))
    judged(work, "base")
    found = compare_runs(folders, None, AnswerReader(judge="judge"), 100)
    assert found.benchmarks == ("mathvista-judge:judge",)
    assert found.models[1].scores == {"mathvista-judge:judge": 4 / NUM}
    report = evaluate_gate(gate, None, AnswerReader(judge="judge"))
    assert [each.name for each in report.findings] == ["mathvista-judge:judge"]
    with pytest.raises(DataError, match=r"a judge jugde has not read .* did you mean 'judge'"):
        compare_runs(folders, None, AnswerReader(judge="jugde"), 100)


def test_a_score_with_a_judge_is_not_paired_with_one_without_or_with_another(work, workers):
    judged(work)
    shutil.copytree(work / "out" / "predictions", work / "again" / "predictions")
    shutil.copy(work / "out" / "scores.json", work / "again")
    make_tiny_llama(work / "other" / "judge", seed=9)
    judged(work, "again", judge="other/judge")
    found = []
    for folder in ("out", "again"):
        reader = AnswerReader(judge="judge")
        (model,) = find_models(work / folder)
        found.append(reader.read(reader.view(model), "mathvista-judge:judge"))
    (model,) = find_models(work / "out")
    plain = AnswerReader().read(model, "mathvista")
    for other in (found[1], plain):
        with pytest.raises(DataError, match="cannot be paired, they differ in judge"):
            pair(found[0], other)


def test_the_commands(work, workers, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str):
        return CliRunner().invoke(app, [*arguments])

    out = str(work / "out")
    result = run("rescore", out, "--judge", str(work / "judge"), "--backend", "transformers")
    assert result.exit_code == 0, result.output
    assert NAME in result.output
    shown = run("predictions", "show", out, "--judge", "judge", "--sample", "mathvista/3")
    assert shown.exit_code == 0, shown.output
    assert "judge:\nFinal answer: 1.50" in shown.output and "extracted: 1.5\n" in shown.output
    both = run("compare", out, out, "--judge", "judge", "--scorer", "strict")
    assert both.exit_code == 2 and "leave --scorer out" in both.output
    unnamed = run("rescore", out, "--judge", " ")
    assert unnamed.exit_code == 2 and "--judge is empty" in unnamed.output


def test_readings_that_stand_in_the_response_are_told_from_others(tmp_path):
    write_mathvista(tmp_path, 4)
    profile = PROFILES["mathvista", "mathvista-offline-v1"]
    choice, integer, *_ = profile.samples(tmp_path)
    pairs = [
        (choice, Answer(choice.id, "", "perhaps yellow or blue, so: yellow", "stop")),
        (choice, Answer(choice.id, "", "hard to say", "stop")),
        (integer, Answer(integer.id, "", "two", "stop")),
    ]
    texts = ("yellow.", "A", "2")
    said = {request_of(*pair).id: text for pair, text in zip(pairs, texts, strict=True)}
    found = count_readings(profile.scorers["strict"], pairs, said)
    assert found == Readings(num_open=3, num_found=3, num_elsewhere=2)


def test_what_a_judge_does_not_read_is_told(work, workers):
    (record,) = find_records(work / "out")
    shutil.rmtree(work / "out" / "predictions")
    info = replace(record.info, source="lm-evaluation-harness 1")
    from pipelines import judging

    opened = open_benchmark(BenchmarkSpec(name="mathvista", data=work / "data"))
    with pytest.raises(DataError, match="reads those to mathvista, wemath, ai2d, geoqa"):
        judging.ask_judge(
            work / "out",
            [(replace(record, info=info), opened)],
            JudgeSpec(str(work / "judge"), TRANSFORMERS),
            workers,
        )


def test_requests_show_question_response_and_form_and_no_gold(tmp_path):
    write_mathvista(tmp_path / "m", 4)
    write_ai2d(tmp_path / "a", 2)
    samples = PROFILES["mathvista", "mathvista-offline-v1"].samples(tmp_path / "m")
    samples += PROFILES["ai2d", "llava"].samples(tmp_path / "a")
    forms = (
        "one letter from A to D", "a whole number", "a number with 2 decimal places",
        "a list in square brackets", "one letter from A to D", "one letter from A to D",
    )  # fmt: skip
    for sample, form in zip(samples, forms, strict=True):
        request = request_of(sample, Answer(sample.id, "", "It is\n\nthat one. ", "stop"))
        (asked,) = request.question
        assert sample.question[0].content.partition("\nHint:")[0] in asked.content
        assert "e.g., 1.23" not in asked.content  # or a judge would write that
        assert "\nResponse:\nIt is\n\nthat one.\n" in asked.content
        assert asked.content.endswith(f"alone, as {form}.\nFinal answer:")
        assert request.gold == "" and request.images == ()
    assert COLOURS[0] in request_of(samples[0], Answer("", "", "x", "stop")).question[0].content


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"), ("\n \n (B) red \nBecause", "(B) red"), ("Final answer: 7", "7"),
        (NO_ANSWER, ""), ('"No answer."', ""), ("", ""), ("\n", ""),
        ("No correct answer", "No correct answer"), ("No answers", "No answers"),
        ("No answer in response 2", ""), ("no answer: A", ""),
    ],
)  # fmt: skip
def test_the_first_line_is_what_a_judge_says(text, expected):
    assert short_answer(text) == expected


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_SMOLLM2, reason="SmolLM2-135M is not installed (requirements/peers.txt)"
)
def test_a_real_judge_reads_answers_on_a_real_backend(work, monkeypatch):
    here = Here()
    monkeypatch.setattr(language_command, "Workers", lambda *_: here)
    texts = ["(A)", "There are two squares in it.", "1.5", "They are one and two."]
    texts += ["(A)", "The answer is 1", "1.5", "[1, 2]"]
    evaluation(work / "real", work / "data", "real", texts)
    spec = JudgeSpec(str(smollm2()), BackendSpec(name="transformers", dtype="float32"))
    scored = rescore_command(work / "real", None, silent_console(), spec)
    by_judge = {each.scores.profile: each for each in scored}
    plain = by_judge["mathvista-offline-v1"]
    found = by_judge[f"mathvista-offline-v1-judge:{spec.name}"]
    (said,) = find_extractions(work / "real")
    assert len(said.answers()) == plain.scores.abstain_rate * NUM == 2
    assert all(each.num_tokens > 0 for each in said.answers())
    assert found.scores.abstain_rate <= plain.scores.abstain_rate
    assert found.scores.micro.value >= plain.scores.micro.value  # it changes no other answer
