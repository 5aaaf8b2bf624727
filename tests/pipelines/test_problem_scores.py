"""We-Math's score is of problems, not of answers: it is compared and gated problem by problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.answers import Answer
from nan_merge.errors import DataError
from pipelines.compare import AVERAGE, compare_runs
from pipelines.compare_command import write_comparison
from pipelines.compare_view import comparison_json, problems_sheet
from pipelines.compared_models import AnswerReader, find_models
from pipelines.gate_command import evaluate_gate
from pipelines.gate_config import Gate
from pipelines.language_benchmarks import open_benchmark
from pipelines.language_config import BenchmarkSpec
from pipelines.language_records import find_records
from pipelines.language_scores import score_record
from pipelines.split import held_out_part
from tests.language_evaluations import keep_evaluation
from tests.picture_folders import write_wemath

STRICT, LOOSE = "wemath: score (strict)", "wemath: score (loose)"
Runs = tuple[Path, Path]
PROBLEMS = 40


def evaluation(folder: Path, data: Path, model: str, wrong: dict[int, str]) -> Path:
    """Answers of one model; ``wrong`` says which parts of which problems it gets wrong."""
    spec = BenchmarkSpec(name="wemath", data=data)
    opened = open_benchmark(spec)
    answers: list[Answer] = []
    for sample in opened.samples:
        number, part = int(sample.cluster_id.rpartition("-")[2]), sample.tags[0].partition("_")[2]
        right = part not in wrong.get(number, "").split()
        label = sample.gold if right else "E"
        answers.append(Answer(sample.id, sample.id, f"Answer: <<{label}>>", "stop"))
    keep_evaluation(folder, opened, data, model, model * 8, answers)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Of "b" 10 wholes are wrong with all steps right (IG); of "a" 4 of these have a step wrong."""
    folder = tmp_path_factory.mktemp("wemath")
    write_wemath(folder / "data", PROBLEMS)
    shared = dict.fromkeys(range(4, 10), "multi")
    lost = dict.fromkeys(range(4), "1 multi")
    rote = {20: "1", 21: "1 2 3"}  # right in the whole, wrong in one step, in all steps
    return (
        evaluation(folder / "b", folder / "data", "b", dict.fromkeys(range(10), "multi")),
        evaluation(folder / "a", folder / "data", "a", shared | lost | rote),
    )


def test_scores_of_problems_are_compared_and_are_in_no_average(runs: Runs):
    found = compare_runs(runs, None, AnswerReader(), resamples=500)
    (model,) = [each for each in found.models if each.compared]
    assert found.benchmarks == ("wemath",) and set(model.by_problem) == {STRICT, LOOSE}
    strict, loose = model.by_problem[STRICT].difference, model.by_problem[LOOSE].difference
    # 4 problems fell from 1/2 to 0; two from 1 to 0, of which loose forgives the one with a step.
    assert strict.value == pytest.approx(-(4 * 0.5 + 2) / PROBLEMS)
    assert loose.value == pytest.approx(-(4 * 0.5 + 1) / PROBLEMS)
    assert (strict.num_samples, strict.num_clusters) == (PROBLEMS, PROBLEMS)
    assert (strict.num_won, strict.num_lost, strict.is_graded) == (0, 6, True)
    assert model.by_problem[STRICT].test == "paired t"
    interval = model.by_problem[STRICT].interval
    assert interval.low < strict.value < interval.high
    assert model.average is not None
    assert model.average.difference == model.compared["wemath"].difference


def test_they_are_the_scores_that_an_evaluation_prints(runs: Runs):
    found = compare_runs(runs, None, AnswerReader(), resamples=100)
    (model,) = [each for each in found.models if each.compared]
    for place, folder in enumerate(runs):
        (record,) = find_records(folder)
        opened = open_benchmark(BenchmarkSpec(name="wemath", data=Path(record.info.data)))
        measures = score_record(record, opened, "compat").scores.measures
        for name in (STRICT, LOOSE):
            own = model.by_problem[name].difference
            printed = measures[name.removeprefix("wemath: ")].value
            assert (own.baseline, own.candidate)[place] == pytest.approx(printed)


def test_tables_page_and_json_show_them(runs: Runs, tmp_path: Path):
    found = compare_runs(runs, None, AnswerReader(), resamples=100)
    sheet = problems_sheet(found)
    assert sheet is not None
    assert [line.label for line in sheet.lines] == [f"a, {STRICT}", f"a, {LOOSE}"]
    assert comparison_json(found)["models"][1]["by_problem"][STRICT]["num_lost"] == 6
    write_comparison(found, tmp_path / "out")
    for name in ("comparison.md", "comparison.html"):
        assert f"a, {STRICT}" in (tmp_path / "out" / name).read_text()


def test_a_gate_decides_on_them(runs: Runs, tmp_path: Path):
    worse = evaluation(
        tmp_path / "c", runs[0].parent / "data", "c", dict.fromkeys(range(30), "1 multi")
    )

    def verdict(candidate: str, **changes: object) -> str:
        content = {"candidate": candidate, "baseline": f"{runs[0]}:b", "margin": 1.0}
        content |= {"benchmarks": (STRICT, LOOSE), "min_samples": 10, "resamples": 1000}
        report = evaluate_gate(Gate.model_validate(content | changes), None, AnswerReader())
        assert {each.name for each in report.findings} - {AVERAGE} == {STRICT, LOOSE}
        assert all(each.difference.num_samples >= PROBLEMS for each in report.findings)
        return report.verdict

    assert verdict(f"{runs[1]}:a") == "inconclusive"  # 40 problems are few
    assert verdict(f"{runs[1]}:a", margin=40.0, decide_on="both") == "pass"
    assert verdict(f"{worse}:c") == "fail"


def test_a_score_that_there_is_not_is_named(runs: Runs):
    (model,) = find_models(runs[0])
    with pytest.raises(DataError, match=r"no score 'wemath: score', have wemath: score \(strict\)"):
        AnswerReader().read(model, "wemath: score")


def test_samples_that_a_search_saw_are_left_out_of_them(runs: Runs):
    (model,) = find_models(runs[0])
    whole, part = AnswerReader().read(model, STRICT), AnswerReader().read(model, STRICT, 0.5)
    is_held_out = held_out_part(0.5)
    assert 0 < len(part.sample_ids) < len(whole.sample_ids)
    assert part.sample_ids.tolist() == [i for i in whole.sample_ids.tolist() if is_held_out(i)]
