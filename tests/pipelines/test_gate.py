from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from nan_merge.errors import ConfigError, DataError
from pipelines.cli import app
from pipelines.compared_models import AnswerReader, common_dev_share, find_models
from pipelines.gate_command import evaluate_gate, gate_command
from pipelines.gate_config import Gate
from pipelines.gate_view import GateFiles, GateReport
from pipelines.split import dev_part
from pipelines.tracking import TrackingError
from tests.finished_runs import write_image_run, write_import

N = 1000
RELEASED = {"a": "1" * 700 + "0" * 300, "b": "1" * 600 + "0" * 400}


def changed(answers: dict[str, str], lost: int, won: int) -> dict[str, str]:
    """Loses the first right answers and wins the last wrong ones, on every benchmark."""
    return {name: "0" * lost + right[lost : N - won] + "1" * won for name, right in answers.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    models = {
        "released": RELEASED,
        "same": changed(RELEASED, 5, 5),
        "worse": changed(RELEASED, 80, 5),
        "unsure": changed(RELEASED, 40, 25),
        "half": {"a": changed(RELEASED, 80, 5)["a"], "b": RELEASED["b"]},
    }
    return write_image_run(tmp_path / "run", models)


def decided(run: Path | None, **section: object) -> GateReport:
    gate = Gate.model_validate({"baseline": "released", "margin": 2.0, "resamples": 2000} | section)
    return evaluate_gate(gate, run, AnswerReader())


def test_a_harmless_change_passes(run: Path):
    report = decided(run, candidate="same")
    assert report.verdict == "pass"
    assert [(each.name, each.verdict) for each in report.findings] == [("a", "pass"), ("b", "pass")]
    assert report.findings[0].low > -0.02
    assert report.findings[0].reason == "the loss is surely less than 2 points"


def test_a_regression_fails(run: Path):
    report = decided(run, candidate="worse")
    assert report.verdict == "fail"
    assert report.findings[0].difference.value == -0.075
    assert report.findings[0].high < -0.02 and report.findings[0].p_fail_corrected < 0.05


def test_one_benchmark_that_fails_is_enough(run: Path):
    report = decided(run, candidate="half")
    assert [each.verdict for each in report.findings] == ["fail", "pass"]
    assert report.verdict == "fail"


def test_no_significant_difference_is_not_a_pass(run: Path):
    report = decided(run, candidate="unsure")
    assert report.verdict == "inconclusive"
    found = report.findings[0]
    assert found.low < -0.02 < found.high
    assert found.reason == (
        "too few samples for a margin of 2 points: an equal candidate would pass 4 times in 5 "
        "with about 1,100"
    )


def test_a_wider_margin_lets_the_same_candidate_pass(run: Path):
    assert decided(run, candidate="unsure", margin=4.0).verdict == "pass"


def test_the_average_alone_may_decide(run: Path):
    report = decided(run, candidate="half", decide_on="average", margin=5.0)
    assert [(each.name, each.verdict) for each in report.findings] == [("average", "pass")]
    both = decided(run, candidate="half", decide_on="both", margin=5.0)
    assert [each.name for each in both.findings] == ["a", "b", "average"]
    assert both.verdict != "pass"


def test_margins_of_single_benchmarks_win(run: Path):
    report = decided(run, candidate="half", margins={"a": 12.0})
    assert [each.margin for each in report.findings] == [0.12, 0.02]
    assert report.verdict == "pass"


def test_only_the_named_benchmarks_decide(run: Path):
    report = decided(run, candidate="half", benchmarks=["b"])
    assert report.verdict == "pass"
    assert "No sample flipped" in report.notes[0]


def test_few_samples_decide_nothing(run: Path):
    report = decided(run, candidate="same", min_samples=1001)
    assert report.verdict == "inconclusive"
    assert report.findings[0].reason == "1,000 samples are fewer than 1,001"


def test_one_source_decides_nothing(tmp_path: Path):
    models = {"released": RELEASED, "worse": changed(RELEASED, 80, 5)}
    run = write_image_run(tmp_path / "run", models, cluster_size=N)
    report = decided(run, candidate="worse")
    assert report.verdict == "inconclusive"
    assert report.findings[0].reason.startswith("all samples of a subset share one source")


def test_few_sources_decide_less_than_many_samples(tmp_path: Path):
    models = {"released": RELEASED, "worse": changed(RELEASED, 30, 0)}
    many = write_image_run(tmp_path / "many", models)
    few = write_image_run(tmp_path / "few", models, cluster_size=100)
    assert decided(many, candidate="worse", margin=1.0).verdict == "fail"
    assert decided(few, candidate="worse", margin=1.0).verdict == "inconclusive"


def test_a_margin_within_the_engines_noise_decides_nothing(run: Path, tmp_path: Path):
    again = write_image_run(tmp_path / "again", {"released": changed(RELEASED, 60, 60)})
    report = decided(run, candidate="same", repeat=str(again))
    assert report.verdict == "inconclusive"
    assert report.findings[0].noise == pytest.approx(1.96 * 120**0.5 / N)
    assert "the baseline differs from itself by up to 2.1 points" in report.findings[0].reason
    quiet = write_image_run(tmp_path / "quiet", {"released": RELEASED})
    assert decided(run, candidate="same", repeat=str(quiet)).verdict == "pass"


def test_rates_have_limits(tmp_path: Path):
    base = write_import(tmp_path / "base", "m", {"gsm8k": "10" * 200})
    cut = write_import(
        tmp_path / "new", "m", {"gsm8k": "10" * 200}, truncated=range(40), abstained=[1]
    )
    section = {"candidate": str(cut), "baseline": str(base), "margin": 5.0}
    report = decided(None, **section)
    assert report.verdict == "fail"
    assert report.breaches == ("gsm8k: 10.0 % truncated, 10.0 points more than the baseline",)
    assert decided(None, **section, max_truncated_rise=None).verdict == "pass"
    limited = decided(None, **section, max_truncated_rise=20, max_abstained=0.1)
    assert limited.breaches == ("gsm8k: 0.2 % abstained, more than 0.1 %",)


def test_a_limit_on_what_is_not_known_is_refused_or_said_to_be_unchecked(tmp_path: Path):
    known = write_import(tmp_path / "known", "m", {"gsm8k": "10" * 200})
    silent = write_import(tmp_path / "silent", "m", {"gsm8k": "10" * 200}, unknown_ends=[7])
    section = {"candidate": str(silent), "baseline": str(known), "margin": 5.0}
    report = decided(None, **section)
    assert report.verdict == "pass"
    note = f"gsm8k: whether answers were cut off is not known of m ({silent}"
    assert report.notes[0].startswith(note)
    assert report.notes[0].endswith("No limit on that was checked.")
    with pytest.raises(DataError, match=r"gate.max_truncated: gsm8k: .* Remove the limit"):
        decided(None, **section, max_truncated=1.0)
    # The other way round the candidate's own limit can be checked.
    turned = {"candidate": str(known), "baseline": str(silent), "margin": 5.0}
    assert decided(None, **turned, max_truncated=1.0).verdict == "pass"


def test_models_of_other_runs_are_found(run: Path, tmp_path: Path):
    new = write_image_run(tmp_path / "new", {"released": changed(RELEASED, 5, 5)})
    report = decided(None, candidate=str(new), baseline=f"{run}:released")
    assert report.verdict == "pass"
    # A folder alone means its model of the candidate's name.
    assert decided(None, candidate=f"{new}:released", baseline=str(run)).verdict == "pass"


def test_samples_that_a_search_saw_decide_nothing(run: Path):
    models = [replace(each, dev_share=0.3) for each in find_models(run) if each.name != "released"]
    assert common_dev_share([*models, find_models(run)[0]]) == 0.3
    seen = dev_part(0.3)
    found = AnswerReader().read(models[0], "a", 0.3)
    assert 600 < len(found.sample_ids) < 800 and len(found.answers) == len(found.credits)
    assert not any(seen(cluster) for cluster in found.split_by)


def test_the_same_seed_gives_the_same_findings(run: Path):
    assert decided(run, candidate="unsure") == decided(run, candidate="unsure")


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        (0, "found 0, expected points above 0: with no margin only a candidate that is surely"),
        (-1.0, "expected points above 0"),
        (0.02, "expected percentage points.* For 2 points write 2"),
    ],
)
def test_margins_that_cannot_be_meant_are_refused(margin: float, message: str):
    with pytest.raises(ValidationError, match=message):
        Gate.model_validate({"margin": margin})
    with pytest.raises(ValidationError, match=message):
        Gate.model_validate({"margins": {"a": margin}})


def test_a_missing_margin_is_asked_for(run: Path):
    with pytest.raises(ConfigError, match="how many percentage points may be lost on a, b"):
        decided(run, candidate="same", margin=None)


def test_what_is_not_there_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"gate.candidate is missing"):
        decided(run)
    with pytest.raises(ConfigError, match="has no model 'sam'; did you mean 'same'"):
        decided(run, candidate="sam")
    with pytest.raises(ConfigError, match="is candidate and baseline at once"):
        decided(run, candidate="released")
    with pytest.raises(ConfigError, match=r"gate.margins.c: nothing of this name is decided on"):
        decided(run, candidate="same", margins={"c": 1.0})
    with pytest.raises(DataError, match="was not asked c; it has a, b"):
        decided(run, candidate="same", benchmarks=["c"])
    with pytest.raises(ConfigError, match=r"gate.repeat is the baseline's own answers"):
        decided(run, candidate="same", repeat="released")
    with pytest.raises(ConfigError, match="holds 5 models; name one"):
        decided(None, candidate=f"{run}", baseline=f"{run}:released")
    with pytest.raises(DataError, match="the run was never made"):
        decided(tmp_path / "no", candidate="same")
    with pytest.raises(DataError, match="There is no folder"):
        decided(None, candidate=str(tmp_path / "no"), baseline=str(run))


def test_other_heads_are_refused(run: Path, tmp_path: Path):
    new = write_image_run(tmp_path / "new", {"released": RELEASED}, heads="others")
    with pytest.raises(DataError, match="they differ in zero-shot heads"):
        decided(None, candidate=str(new), baseline=f"{run}:released")


def test_files_for_continuous_integration(run: Path, tmp_path: Path):
    files = GateFiles(tmp_path / "g.json", tmp_path / "g.xml", tmp_path / "g.md")
    gate = Gate.model_validate({"baseline": "released", "candidate": "half", "margin": 2.0})
    out = StringIO()
    gate_command(gate, run, AnswerReader(), Console(file=out, width=110), files)
    assert "Gate: FAIL" in out.getvalue()
    content = json.loads((tmp_path / "g.json").read_text())
    assert (content["verdict"], content["findings"][0]["verdict"]) == ("fail", "fail")
    suite = ElementTree.parse(tmp_path / "g.xml").getroot()
    assert suite.attrib == {
        "name": "nan-merge gate", "tests": "2", "failures": "1", "errors": "0"
    }  # fmt: skip
    assert suite[0].find("failure") is not None and suite[1].find("failure") is None
    text = (tmp_path / "g.md").read_text()
    assert text.startswith("### Gate: FAIL") and "| a | 1,000 | -7.50 |" in text


def test_a_gate_that_cannot_decide_says_so_in_its_files(run: Path, tmp_path: Path):
    wanted = {"--json": "g.json", "--junit": "g.xml", "--markdown": "g.md"}
    options = [word for name, file in wanted.items() for word in (name, str(tmp_path / file))]
    models = ["--candidate", f"{run}:nobody", "--baseline", f"{run}:released", "--margin", "2"]
    assert CliRunner().invoke(app, ["gate", *models, *options]).exit_code == 2
    assert json.loads((tmp_path / "g.json").read_text())["verdict"] == "error"
    error = ElementTree.parse(tmp_path / "g.xml").getroot().find("testcase/error")
    assert error is not None and "has no model 'nobody'" in error.attrib["message"]
    assert "### Gate: ERROR" in (tmp_path / "g.md").read_text()


def run_file(run: Path, gate: dict[str, object] | None) -> Path:
    content: dict[str, object] = {
        "name": "release",
        "run_folder": str(run),
        "experts": {"tasks": ["digits", "mnist"]},
        "evaluate": {"benchmarks": ["digits", "mnist"]},
    }
    if gate is not None:
        content["gate"] = gate
    path = run.parent / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("candidate", "code"), [("same", 0), ("worse", 1), ("unsure", 3), ("nobody", 2)]
)
def test_exit_codes(run: Path, candidate: str, code: int):
    config = run_file(run, {"candidate": "same", "baseline": "released", "margin": 2.0})
    arguments = ["gate", str(config), f"gate.candidate={candidate}", "gate.resamples=2000"]
    assert CliRunner().invoke(app, arguments).exit_code == code


@pytest.mark.parametrize(("candidate", "is_marked"), [("same", True), ("worse", False)])
def test_what_passes_is_marked_where_that_is_wanted(
    run: Path, monkeypatch: pytest.MonkeyPatch, candidate: str, is_marked: bool
):
    marks: list[tuple[Path, str, dict[str, str]]] = []

    def mark(folder: Path, merge: str, verdict: dict[str, str]) -> str:
        marks.append((folder, merge, verdict))
        return "release version 3"

    monkeypatch.setattr("pipelines.track_sync.mark_passed", mark)
    config = run_file(run, {"candidate": candidate, "baseline": "released", "margin": 2.0})
    arguments = ["gate", str(config), "gate.resamples=2000", "gate.mark_passed=true"]
    done = CliRunner().invoke(app, arguments)
    verdict = {"baseline": f"released ({run})", "margin/a": "2", "margin/b": "2"}
    assert marks == ([(run, candidate, verdict)] if is_marked else [])
    assert ("release version 3 has the alias passed" in done.stdout) == is_marked


def test_a_server_that_is_down_changes_no_verdict(run: Path, monkeypatch: pytest.MonkeyPatch):
    def mark(*_: object, **__: object) -> str:
        raise TrackingError("MLflow does not answer; `nan-merge track sync` sends it later.")

    monkeypatch.setattr("pipelines.track_sync.mark_passed", mark)
    config = run_file(run, {"candidate": "same", "baseline": "released", "margin": 2.0})
    done = CliRunner().invoke(app, ["gate", str(config), "gate.mark_passed=true"])
    assert done.exit_code == 0
    assert "warning: MLflow does not answer" in done.stdout


def test_options_do_without_a_file(run: Path):
    arguments = ["gate", "--candidate", f"{run}:worse", "--baseline", f"{run}:released"]
    done = CliRunner().invoke(app, [*arguments, "--margin", "2", "decide_on=average"])
    assert done.exit_code == 1
    assert "Gate: FAIL" in done.stdout and "average" in done.stdout
    assert CliRunner().invoke(app, [*arguments, "--margin", "0"]).exit_code == 2


def test_a_run_file_without_a_gate_is_refused(run: Path):
    done = CliRunner().invoke(app, ["gate", str(run_file(run, None))])
    assert done.exit_code == 2
    assert "has no section `gate:`" in done.stderr
