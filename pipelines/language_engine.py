"""Who asks the questions of language benchmarks: this project, or OpenCompass as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.imported import imported_benchmark
from pipelines.language_benchmarks import OWN_ENGINE, OpenBenchmark, open_benchmark
from pipelines.language_config import BackendSpec, BenchmarkSpec, EngineSpec
from pipelines.language_evaluate import LanguageCandidate, answer_benchmarks
from pipelines.language_records import Record
from pipelines.workers import Workers

OPENCOMPASS_FOLDER = "opencompass"
"""Where, in the folder of a run or an evaluation, the folders of OpenCompass lie."""


def open_benchmarks(
    specs: Sequence[BenchmarkSpec], data: Path | None, engine: EngineSpec
) -> list[OpenBenchmark]:
    """Open benchmarks for an engine; for arguments and errors see `open_benchmark`.

    Raises:
        ConfigError: Also if the engine cannot ask a benchmark.
    """
    if engine.name == OWN_ENGINE:
        return [open_benchmark(spec, data) for spec in specs]
    from pipelines.opencompass_profiles import asked_by_opencompass, for_opencompass

    able = [for_opencompass(spec) for spec in specs]
    return [asked_by_opencompass(open_benchmark(spec, data)) for spec in able]


def answer_by_engine(
    candidates: Sequence[LanguageCandidate],
    benchmarks: Sequence[OpenBenchmark],
    engine: EngineSpec,
    backend: BackendSpec,
    folder: Path,
    workers: Workers,
) -> dict[tuple[str, str], Record]:
    """Records of answers by (candidate's name, `OpenBenchmark.name`).

    Args:
        candidates: The models.
        benchmarks: From `open_benchmarks` with the same engine.
        engine: Who asks.
        backend: What the models run on.
        folder: Of the run or the evaluation.
        workers: Where it runs.
    """
    if engine.name == OWN_ENGINE:
        return answer_benchmarks(candidates, benchmarks, backend.options(), workers)
    from pipelines.opencompass_engine import answer_by_opencompass

    kept = folder / OPENCOMPASS_FOLDER
    return answer_by_opencompass(candidates, benchmarks, engine, backend, kept, workers)


def as_answered(record: Record, benchmark: OpenBenchmark) -> OpenBenchmark:
    """The benchmark by which a record is scored: another engine's brings its questions along."""
    return benchmark if benchmark.engine == OWN_ENGINE else imported_benchmark(record)
