"""OpenCompass as the engine, with a program in its place: what is asked, read back and refused."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from evaluators import opencompass
from evaluators.opencompass import opencompass_version
from evaluators.serve import Endpoint
from evaluators.torchvision_repair import repair
from nan_merge.errors import ConfigError, DataError, EvaluationError
from pipelines import language_command
from pipelines.cli import app
from pipelines.config import RunConfig
from pipelines.evaluate import Candidate
from pipelines.language_collect import column_names, score_language_models
from pipelines.language_command import evaluate_command, rescore_command
from pipelines.language_config import BackendSpec, BenchmarkSpec, EngineSpec
from pipelines.language_engine import open_benchmarks
from pipelines.language_records import find_records
from pipelines.opencompass_engine import check_opencompass
from pipelines.opencompass_profiles import for_opencompass
from pipelines.preflight import check_run
from pipelines.run import RunModels
from tests.fake_opencompass import FakeOpenCompass
from tests.language_evaluations import Here, make_work, set_environment, silent_console

repair()
pytest.importorskip("transformers", reason="transformers is not installed")

MMLU = {"name": "mmlu", "subsets": ("anatomy", "virology")}
GSM8K = {"name": "gsm8k", "limit": 3}


class Server:
    """In the place of vLLM's: a process that does nothing."""

    def __init__(self) -> None:
        self.starts = 0
        self.seconds = "600"

    @contextmanager
    def __call__(self, folder: Path, log: Path, **options: object) -> Iterator[Endpoint]:
        self.starts += 1
        assert options["name"] == "nan-merge" and options["api_key"]
        log.write_text("ValueError: no memory left\n")
        process = subprocess.Popen(["sleep", self.seconds])
        try:
            yield Endpoint("http://127.0.0.1:1/v1", "nan-merge", log, process)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("made"), questions=4)


@pytest.fixture
def fake(tmp_path: Path) -> FakeOpenCompass:
    return FakeOpenCompass(tmp_path / "environment")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    started = Server()
    monkeypatch.setattr(opencompass, "serve_model", started)
    monkeypatch.setattr(opencompass, "_max_length", lambda *_: 2048)
    monkeypatch.setattr(opencompass, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(language_command, "Workers", Here)
    monkeypatch.setattr(language_command, "require", lambda _: None)
    set_environment(tmp_path, monkeypatch)
    return started


def evaluate(made: Path, fake: FakeOpenCompass, out: Path, *specs: dict, **engine: object) -> str:
    console = silent_console()
    evaluate_command(
        str(made / "model"),
        [BenchmarkSpec.model_validate(spec) for spec in specs],
        BackendSpec(),
        console,
        data=made / "data",
        output=out,
        engine=EngineSpec.model_validate({"name": "opencompass", "python": fake.python, **engine}),
    )
    return console.export_text()


def test_its_verdicts_stand_in_our_tables_under_a_name_of_their_own(made, fake, server, tmp_path):
    out = tmp_path / "out"
    table = evaluate(made, fake, out, GSM8K, MMLU)
    assert "gsm8k opencompass:gsm8k_gen_1d7fe4 (compat)" in table
    gsm8k, mmlu = json.loads((out / "scores.json").read_text())
    assert gsm8k["source"] == "OpenCompass 0.5.4"
    assert gsm8k["average"]["value"] == pytest.approx(2 / 3)
    assert (gsm8k["micro"]["num_samples"], gsm8k["abstain_rate"]) == (3, pytest.approx(1 / 3))
    assert gsm8k["engine"]["config"].endswith("gsm8k_gen_1d7fe4.py")
    assert mmlu["profile"] == "opencompass:mmlu_gen_4d595a"
    # Two of 57 subjects are asked, so there is no average, as with our own profiles.
    assert mmlu["average"] is None and len(mmlu["missing_subsets"]) == 55
    assert {name: each["value"] for name, each in mmlu["subsets"].items()} == {
        "anatomy": 0.75,
        "virology": 0.75,
    }
    # The same again by what is on the disk alone.
    again = rescore_command(out, None, silent_console())
    assert [each.as_json() for each in again] == [gsm8k, mmlu]
    shown = CliRunner().invoke(app, ["predictions", "show", str(out), "--sample", "anatomy/3"])
    assert "anatomy/3: wrong" in shown.output and "Question 3?" in shown.output
    assert "none found" in shown.output and "another text" not in shown.output


def test_what_is_finished_is_not_asked_again(made, fake, server, tmp_path):
    out = tmp_path / "out"
    evaluate(made, fake, out, GSM8K)
    evaluate(made, fake, out, GSM8K)
    assert (server.starts, fake.calls) == (1, ["gsm8k"])
    evaluate(made, fake, out, GSM8K, MMLU)
    assert (server.starts, fake.calls) == (2, ["gsm8k", "mmlu"])
    # Another limit is another record; the first one stays.
    evaluate(made, fake, out, {"name": "gsm8k", "limit": 2})
    assert len(find_records(out)) == 3


def test_what_was_finished_before_a_failure_is_kept(made, fake, server, tmp_path):
    out = tmp_path / "out"
    evaluate(made, fake, out, GSM8K)
    for record in find_records(out):  # as if it had been killed before they were written
        for path in record.path.parent.iterdir():
            path.unlink()
    fake.behave("exit")
    with pytest.raises(EvaluationError, match="exit code 3"):
        evaluate(made, fake, out, GSM8K, MMLU)
    assert fake.calls == ["gsm8k", "mmlu"]  # and not gsm8k again
    fake.behave("well")
    evaluate(made, fake, out, GSM8K, MMLU)
    assert fake.calls == ["gsm8k", "mmlu", "mmlu"]


def test_without_a_summary_it_is_run_again(made, fake, server, tmp_path):
    out = tmp_path / "out"
    fake.behave("no summary")
    with pytest.raises(EvaluationError, match="wrote no summary"):
        evaluate(made, fake, out, GSM8K)
    fake.behave("well")
    evaluate(made, fake, out, GSM8K)
    assert len(find_records(out)) == 1


def test_half_written_files_are_not_taken_for_whole(made, fake, server, tmp_path):
    out = tmp_path / "out"
    fake.behave("another summary")
    with pytest.raises(DataError):
        evaluate(made, fake, out, GSM8K)
    (predictions,) = out.rglob("run/predictions/*/gsm8k.json")
    predictions.write_text(predictions.read_text()[:50])
    fake.behave("exit")
    with pytest.raises(EvaluationError):
        evaluate(made, fake, out, GSM8K)
    assert not predictions.exists()
    assert not list(out.rglob("run/results/*/gsm8k.json"))


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (
            "exit",
            ["OpenCompass ended with exit code 3", "No module named 'mmengine'", "opencompass.log"],
        ),
        ("kill", ["OpenCompass ended with exit code -9"]),
        ("no summary", ["OpenCompass wrote no summary"]),
        (
            "task fails",
            [
                "did not finish 1 of 1 data sets (gsm8k)",
                "first.out says why:\nError code: 400 - too long\nRuntimeError: Calling OpenAI",
            ],
        ),
    ],
)
def test_its_failures_are_told_in_its_own_words(made, fake, server, tmp_path, behaviour, words):
    fake.behave(behaviour)
    with pytest.raises(EvaluationError) as error:
        evaluate(made, fake, tmp_path / "out", GSM8K)
    for each in words:
        assert each in str(error.value)
    assert not list((tmp_path / "out").rglob("scores.json"))


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("another summary", "summary says 67.67 for gsm8k, and its verdicts on the samples 66.67"),
        ("another order", "sample 0 of gsm8k is not the one that was asked"),
    ],
)
def test_results_that_are_not_of_what_was_asked_are_refused(
    made, fake, server, tmp_path, behaviour, message
):
    fake.behave(behaviour)
    with pytest.raises(DataError, match=message):
        evaluate(made, fake, tmp_path / "out", GSM8K)


def is_gone(pid: int) -> bool:
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_one_that_falls_silent_is_ended_with_all_that_it_started(made, fake, server, tmp_path):
    fake.behave("hang")
    with pytest.raises(
        EvaluationError, match=r"wrote nothing for 1 s and was ended[^$]*exp folder"
    ):
        evaluate(made, fake, tmp_path / "out", GSM8K, silence_seconds=1)
    assert is_gone(fake.child)


def test_a_ctrl_c_ends_all_that_it_started(made, fake, server, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            try:
                if fake.child:
                    raise KeyboardInterrupt
            except (OSError, ValueError):
                time.sleep(0.05)

    fake.behave("hang")
    monkeypatch.setattr(opencompass, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(made, fake, tmp_path / "out", GSM8K)
    assert is_gone(fake.child)


def test_if_the_server_ends_so_does_it(made, fake, server, tmp_path):
    fake.behave("hang")
    server.seconds = "0.5"
    with pytest.raises(EvaluationError, match=r"The server ended[^$]*no memory left"):
        evaluate(made, fake, tmp_path / "out", GSM8K)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "mmlu", "profile": "oc-ppl"},
            "cannot ask mmlu/oc-ppl: it compares likelihoods .* Of mmlu it can ask oc-gen-5shot, "
            "oc-gen-0shot.",
        ),
        ({"name": "bbh", "profile": "oc-gen-base"}, "it is asked as plain text"),
        ({"name": "gsm8k", "profile": "cot"}, "the protocol is that of QwenLM/Qwen2.5-Math"),
        ({"name": "ceval-test"}, "cannot ask ceval-test/"),
        ({"name": "gsm8k", "chat_template": False}, "always applies the model's chat template"),
    ],
)
def test_what_it_cannot_ask_is_refused_with_the_reason(spec, message):
    with pytest.raises(ConfigError, match=message):
        for_opencompass(BenchmarkSpec.model_validate(spec))


def test_without_a_profile_it_asks_the_first_that_it_can():
    found = [
        for_opencompass(BenchmarkSpec(name=name)).profile
        for name in ("mmlu", "ceval", "bbh", "gsm8k")
    ]
    assert found == ["oc-gen-5shot", "oc-gen", "oc-gen", "oc"]


def test_a_backend_without_a_server_is_refused(fake):
    with pytest.raises(ConfigError, match="backend: transformers has none"):
        check_opencompass(EngineSpec(name="opencompass"), BackendSpec(name="transformers"))


def test_an_environment_without_it_is_told_how_to_make_one(tmp_path):
    with pytest.raises(EvaluationError, match=r"no interpreter .*make opencompass-engine"):
        opencompass_version(tmp_path / "bin" / "python")
    without = FakeOpenCompass(tmp_path / "environment", version=None)
    with pytest.raises(EvaluationError, match=r"has no OpenCompass.*make opencompass-engine"):
        opencompass_version(without.python)
    with pytest.raises(EvaluationError, match="may have no blanks"):
        opencompass_version(FakeOpenCompass(tmp_path / "with blank").python)


def test_columns_of_a_run_name_the_engine(made):
    specs = [BenchmarkSpec.model_validate(spec) for spec in (GSM8K, MMLU)]
    opened = open_benchmarks(specs, made / "data", EngineSpec(name="opencompass"))
    assert list(column_names(opened).values()) == [
        "gsm8k (opencompass)",
        "mmlu (2 of 57 subsets) (opencompass)",
    ]


def test_the_run_file_takes_its_name_or_its_options():
    from pipelines.config import Evaluate

    short = Evaluate.model_validate({"benchmarks": ["bbh"], "engine": "opencompass"})
    assert short.engine == EngineSpec(name="opencompass")
    long = {"name": "opencompass", "python": "/oc/bin/python", "requests": 8}
    found = Evaluate.model_validate({"benchmarks": ["bbh"], "engine": long}).engine
    assert (found.python, found.requests) == (Path("/oc/bin/python"), 8)


def test_in_a_run_it_asks_every_model_and_its_column_names_it(made, fake, server, tmp_path):
    config = run_config(made, fake, tmp_path, "gsm8k")
    candidates = [
        Candidate(name, made / "model", tmp_path / "run" / "predictions" / name.lower())
        for name in ("Pretrained", "math")
    ]
    scored = score_language_models(config, RunModels("", ()), [], candidates, Here())  # type: ignore[arg-type]
    assert [(row.model, row.benchmark, row.num_samples) for row in scored.rows] == [
        ("Pretrained", "gsm8k (opencompass)", 3),
        ("math", "gsm8k (opencompass)", 3),
    ]
    assert scored.rows[0].value == pytest.approx(2 / 3)
    assert scored.facts["engine"] == "OpenCompass 0.5.4"
    protocol = scored.facts["protocol of gsm8k/opencompass:gsm8k_gen_1d7fe4"]
    assert "gsm8k_gen_1d7fe4.py, asked and scored by itself" in protocol
    assert len(list((tmp_path / "run" / "opencompass").iterdir())) == 2


def test_a_run_that_it_cannot_ask_is_refused_before_anything_runs(made, fake, tmp_path):
    config = run_config(made, fake, tmp_path, {"name": "mmlu", "profile": "oc-ppl"})
    with pytest.raises(ConfigError, match="cannot ask mmlu/oc-ppl"):
        check_run(config)


def run_config(made: Path, fake: FakeOpenCompass, folder: Path, benchmark: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "small",
            "run_folder": folder / "run",
            "base": str(made / "model"),
            "models": [{"path": str(made / "model"), "name": "math"}],
            "evaluate": {
                "benchmarks": [benchmark],
                "limit": 3,
                "data": made / "data",
                "engine": {"name": "opencompass", "python": fake.python},
            },
            "track": {"mlflow": False},
        }
    )
