from __future__ import annotations

import json
import shlex
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nan_merge.errors import ConfigError, DataError
from pipelines.cli import app
from pipelines.compare import ComparedModel, Comparison, compare_runs
from pipelines.compare_command import compare_command
from pipelines.compared_models import AnswerReader, split_reference
from tests.finished_runs import write_image_run, write_import

BASELINE = {"a": "1100" * 10, "b": "1010" * 5}
BETTER = {"a": "1110" * 10, "b": "1010" * 5}
INDIVIDUAL = {"a": "1111" * 10, "b": "1111" * 5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    models = {"Pretrained": BASELINE, "Individual": INDIVIDUAL, "TA": BASELINE, "TIES": BETTER}
    return write_image_run(
        tmp_path / "run", models, kinds={"Pretrained": "pretrained", "Individual": "individual"}
    )


def compare(*folders: Path, baseline: str | None = None) -> Comparison:
    return compare_runs(folders, baseline, AnswerReader(), resamples=1000)


def model_of(found: Comparison, name: str) -> ComparedModel:
    return next(each for each in found.models if each.model == name)


def test_differences_samples_ranks_and_shares(run: Path):
    found = compare(run)
    assert found.baseline == "TA"  # the first merge
    ties = model_of(found, "TIES")
    assert ties.compared["a"].difference.value == 0.25
    assert (ties.compared["a"].difference.num_won, ties.compared["a"].difference.num_lost) == (
        10,
        0,
    )
    assert ties.compared["a"].p_value == pytest.approx(2 / 2**10)
    assert ties.compared["a"].p_corrected == pytest.approx(4 / 2**10)  # two benchmarks
    assert ties.average is not None
    assert ties.average.difference.value == pytest.approx(0.125)
    assert ties.average.interval.low > 0
    # On a TIES is first and TA second, on b both share the places: (1 + 1.5) / 2 and (2 + 1.5) / 2.
    assert (ties.mean_rank, model_of(found, "TA").mean_rank) == (1.25, 1.75)
    assert model_of(found, "Individual").mean_rank is None
    assert ties.normalised == pytest.approx((0.75 + 0.5) / 2)
    assert model_of(found, "Individual").normalised == 1


def test_flipped_samples_are_listed_with_their_answers(run: Path):
    flips = [each for each in compare(run).flips if each.model == "TIES"]
    assert len(flips) == 10
    assert (flips[0].benchmark, flips[0].sample_id, flips[0].won) == ("a", "a/00002", True)
    assert (flips[0].answer, flips[0].baseline_answer, flips[0].gold) == ("1", "0", "1")


def test_a_model_that_misses_a_benchmark_has_no_average(tmp_path: Path):
    run = write_image_run(tmp_path / "run", {"TA": BASELINE, "TIES": {"a": BETTER["a"]}})
    ties = model_of(compare(run), "TIES")
    assert set(ties.compared) == {"a"}
    assert (ties.average, ties.mean_rank) == (None, None)


def test_runs_are_told_apart_by_their_folders(tmp_path: Path):
    runs = [write_image_run(tmp_path / name, {"TIES": BASELINE}) for name in ("old", "new")]
    found = compare(*runs)
    names = [f"TIES ({folder})" for folder in runs]
    assert [each.model for each in found.models] == names
    assert found.baseline == names[0]
    assert compare(*runs, baseline=f"{runs[1]}:TIES").baseline == names[1]


def test_imported_results_are_compared_sample_by_sample(tmp_path: Path):
    base = write_import(tmp_path / "base", "base", {"mmlu": "10" * 30})
    tuned = write_import(tmp_path / "tuned", "tuned", {"mmlu": "11" * 30})
    found = model_of(compare(base, tuned), "tuned")
    assert found.compared["mmlu"].difference.num_won == 30
    assert found.compared["mmlu"].difference.num_strata == 2


def test_the_tables_name_what_they_show(run: Path):
    out = StringIO()
    compare_command([run], Console(file=out, width=110), flips="a", limit=1, resamples=1000)
    text = out.getvalue()
    assert "Compared with TA" in text and "+12.50" in text and "*+25.0" in text
    assert "TIES: 10 won, 0 lost" in text and "... and 9 more" in text
    assert f"nan-merge predictions show {run} --benchmark a --sample a/00002" in text


def test_the_command_that_shows_a_flip_can_be_pasted(tmp_path: Path):
    run = write_image_run(
        tmp_path / "Ann's runs" / "$1",
        {"TA": {"a": "0"}, "TIES": {"a": "1"}},
    )
    out = StringIO()
    compare_command([run], Console(file=out, width=110), flips="a", resamples=100)
    (line,) = (each for each in out.getvalue().splitlines() if "predictions show" in each)
    shown = ["nan-merge", "predictions", "show", str(run), "--benchmark", "a", "--sample"]
    assert shlex.split(line) == [*shown, "a/00000"]


def test_files_and_json_hold_everything(run: Path, tmp_path: Path):
    output = tmp_path / "comparison"
    done = CliRunner().invoke(
        app, ["compare", str(run), "--json", "--output", str(output), "--resamples", "1000"]
    )
    printed, written = json.loads(done.stdout), json.loads((output / "comparison.json").read_text())
    assert printed == written
    assert printed["models"][3]["benchmarks"]["a"]["value"] == 0.25
    assert len((output / "flips.jsonl").read_text().splitlines()) == 40  # 30 of them Individual
    assert "| TIES |" in (output / "comparison.md").read_text()
    page = (output / "comparison.html").read_text(encoding="utf-8")
    assert '<th scope="row">TIES</th>' in page and str(run) in page


def test_the_same_seed_gives_the_same_numbers(run: Path):
    first, second = compare(run), compare(run)
    assert first.models == second.models


def test_another_data_digest_is_refused(tmp_path: Path):
    old = write_image_run(tmp_path / "old", {"TA": BASELINE}, data="1" * 64)
    new = write_image_run(tmp_path / "new", {"TIES": BETTER}, data="2" * 64)
    with pytest.raises(
        DataError, match="a: TIES and TA cannot be paired, they differ in data: 2222"
    ):
        compare(old, new)


def test_another_profile_is_refused(tmp_path: Path):
    base = write_import(tmp_path / "base", "base", {"gsm8k": "10"}, profile="strict-match")
    tuned = write_import(tmp_path / "tuned", "tuned", {"gsm8k": "11"}, profile="flexible-extract")
    with pytest.raises(DataError, match="differ in profile: flexible-extract and strict"):
        compare(base, tuned)


def test_other_samples_are_refused(tmp_path: Path):
    old = write_image_run(tmp_path / "old", {"TA": BASELINE})
    new = write_image_run(tmp_path / "new", {"TIES": {**BETTER, "a": "1" * 38}})
    with pytest.raises(DataError, match="TIES answered 38 samples and TA 40, and they are not the"):
        compare(old, new)


def test_other_engines_are_noted(tmp_path: Path):
    old = write_image_run(tmp_path / "old", {"TA": BASELINE})
    new = write_image_run(tmp_path / "new", {"TIES": BETTER}, torch="2.14")
    assert compare(old, new).notes == (
        "TIES and TA were computed by other engines (torch 2.14 against 2.13).",
    )


def test_a_run_that_was_never_finished_is_refused(run: Path):
    (run / "run.json").unlink()
    with pytest.raises(DataError, match="was never finished: it holds no results"):
        compare(run)


def test_answers_of_other_weights_are_refused(run: Path):
    path = run / "predictions" / "TIES" / "a.jsonl"
    path.write_text(path.read_text().replace('"key": "key"', '"key": "older"', 1))
    with pytest.raises(DataError, match="TIES on a was never finished"):
        compare(run)


def test_a_run_of_an_older_version_says_how_to_renew_it(run: Path):
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "predictions": {}}))
    with pytest.raises(DataError, match=r"is of an older version.*nothing is computed twice"):
        compare(run)


def test_answers_that_are_not_numbers_are_refused(run: Path):
    path = run / "predictions" / "TIES" / "a.jsonl"
    path.write_text(path.read_text().replace("-0.5", "NaN", 7))
    with pytest.raises(DataError, match="TIES on a: 7 of 40 log-probabilities are not numbers"):
        compare(run)


def test_scores_that_are_not_numbers_are_refused(run: Path):
    path = run / "results.json"
    path.write_text(path.read_text().replace('"value": 0.75', '"value": NaN', 1))
    with pytest.raises(DataError, match="TIES on a is not a number"):
        compare(run)


def test_names_that_are_not_there_are_refused(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="has no model 'TIE'; did you mean 'TIES'"):
        compare(run, baseline="TIE")
    with pytest.raises(DataError, match="There is no folder"):
        compare(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds neither a run nor an evaluation"):
        compare(tmp_path)
    with pytest.raises(ConfigError, match="no such benchmark was compared, have a, b"):
        compare_command([run], Console(file=StringIO()), flips="c", resamples=1000)


def test_a_run_that_is_named_twice_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run)
    with pytest.raises(ConfigError, match="is named twice"):
        compare(run, Path("../run"))


def test_one_model_alone_cannot_be_compared(tmp_path: Path):
    run = write_image_run(tmp_path / "run", {"TIES": BASELINE})
    with pytest.raises(ConfigError, match="TIES is the only model of"):
        compare(run)


def test_models_without_a_common_benchmark_cannot_be_compared(tmp_path: Path):
    runs = [write_image_run(tmp_path / name, {name: {name: "10"}}) for name in ("a", "b")]
    with pytest.raises(DataError, match="No other model was asked a benchmark of a"):
        compare(*runs)


def test_references_may_hold_colons(tmp_path: Path):
    folder = tmp_path / "run:1"
    folder.mkdir()
    assert split_reference(f"{folder}:TIES: two") == (folder, "TIES: two")
    assert split_reference(str(folder)) == (folder, None)
