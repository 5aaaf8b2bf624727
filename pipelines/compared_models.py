"""Find models with their answers: in finished runs, in evaluations, in imported results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from evaluators.profiles import ScorerName
from nan_merge.config_messages import did_you_mean
from nan_merge.errors import ConfigError, DataError
from pipelines.config import RunConfig
from pipelines.image_records import info_path
from pipelines.judging import judge_identity, judged_benchmark, judges_of, pick_judge
from pipelines.language_benchmarks import (
    OpenBenchmark,
    find_profile,
    is_own_benchmark,
    open_benchmark,
)
from pipelines.language_config import BenchmarkSpec
from pipelines.language_records import (
    OWN_SOURCE,
    Record,
    RecordInfo,
    find_extractions,
    find_records,
    read_record,
)
from pipelines.language_scores import benchmark_of, first_scorer, outcomes_of
from pipelines.outcomes import (
    Outcomes,
    image_outcomes,
    language_outcomes,
    problem_outcomes,
    unfinished,
    unseen,
)
from pipelines.results import RunResults, baseline_model, read_results
from pipelines.split import held_out_part

SCORES_NAME = "scores.json"


@dataclass(frozen=True)
class KeptModel:
    """A model whose answers are on disk.

    Attributes:
        name: As its run's table or its evaluation calls it.
        kind: "pretrained", "individual" or "merged"; "" in evaluations.
        folder: The run's or the evaluation's.
        records: Benchmark -> file of answers.
        dev_share: Of a sweep, the share of sources that its search saw: its samples are no
            evidence. 0 elsewhere.
    """

    name: str
    kind: str
    folder: Path
    records: Mapping[str, Path]
    dev_share: float = 0.0


@dataclass
class AnswerReader:
    """Reads answers and judges them; opens the data of each language benchmark once.

    Attributes:
        scorer: Whose verdicts on language models; the one that tables show if None.
        data: The data's folder, if it is not where it was.
        judge: Name of a judge; only what it read is compared then, under a name of its own.
    """

    scorer: ScorerName | None = None
    data: Path | None = None
    judge: str | None = None
    _extractions: dict[Path, list[Record]] = field(default_factory=dict[Path, list[Record]])
    _opened: dict[tuple[str, ...], OpenBenchmark] = field(
        default_factory=dict[tuple[str, ...], OpenBenchmark]
    )

    def view(self, model: KeptModel) -> KeptModel:
        """The model as this reader reads it: with a judge, only the benchmarks that it read.

        Raises:
            DataError: If the judge has read no answer of the model.
        """
        if self.judge is None:
            return model
        judges = {
            name: self._judges(read_record(path), model)
            for name, path in model.records.items()
            if not _is_of_images(path)
        }
        records = {
            f"{name}-judge:{self.judge}": model.records[name]
            for name, found in judges.items()
            if self.judge in found
        }
        if not records:
            known = {name: each for found in judges.values() for name, each in found.items()}
            pick_judge(self.judge, known, model.name, model.folder)
        return replace(model, records=records)

    def _judges(self, record: Record, model: KeptModel) -> dict[str, Record]:
        if model.folder not in self._extractions:
            self._extractions[model.folder] = find_extractions(model.folder)
        return judges_of(record, self._extractions[model.folder])

    def read(self, model: KeptModel, benchmark: str, dev_share: float = 0.0) -> Outcomes:
        """Verdicts on a model's answers to a benchmark.

        Args:
            model: Whose.
            benchmark: To which; or a score of problems, e.g. "wemath: score (strict)".
            dev_share: Leaves out the samples that a search with this share saw.

        Raises:
            DataError: If the answers are missing, unfinished, damaged or not numbers, or their
                data is gone or changed, or there is no such score of problems.
        """
        column = column_of(model, benchmark) or benchmark
        found = self._read(model, column)
        if column != benchmark:
            found = _problem_score(found, benchmark)
        return found if dev_share == 0 else unseen(found, held_out_part(dev_share))

    def _read(self, model: KeptModel, benchmark: str) -> Outcomes:
        path = model.records[benchmark]
        if _is_of_images(path):
            return image_outcomes(path, model.name, benchmark)
        record = read_record(path)
        if not path.is_file():
            raise unfinished(path, model.name, benchmark)
        opened, asked = self._benchmark(record, model.folder)
        judge = None
        if self.judge is not None:
            what = f"{model.name} on {benchmark}"
            judge = pick_judge(self.judge, self._judges(record, model), what, model.folder)
            opened = judged_benchmark(opened, self.judge, judge)
        found = outcomes_of(record, opened, self.scorer or first_scorer(opened), asked)
        whole = replace(language_outcomes(found, record.info, path, benchmark), model=model.name)
        if judge is not None:
            whole = replace(whole, asked_as={**whole.asked_as, "judge": judge_identity(judge)})
        score = opened.profile.problem_scores
        by_problem = score(found) if score is not None else {}
        scored = [problem_outcomes(whole, name, each) for name, each in by_problem.items()]
        return replace(whole, by_problem=tuple(scored))

    def _benchmark(
        self, record: Record, folder: Path
    ) -> tuple[OpenBenchmark, frozenset[str] | None]:
        info = record.info
        spec = _spec_of(info, folder)
        limits = str(spec and (spec.limit, spec.subsets))
        own = "" if info.source == OWN_SOURCE else str(record.path)  # it brings its questions
        digest, chat = str(info.made_of.get("data")), str(info.uses_chat_template)
        key = (info.benchmark, info.profile, info.data, digest, chat, own, limits)
        if key not in self._opened:
            if spec is None:
                self._opened[key] = benchmark_of(record, self.data)
            else:
                data = self.data or Path(info.data)
                self._opened[key] = open_benchmark(spec.model_copy(update={"data": data}))
        opened = self._opened[key]
        return opened, opened.asked if spec is not None else None


def _is_of_images(path: Path) -> bool:
    return info_path(path).is_file() or not path.with_suffix(".json").is_file()


def column_of(model: KeptModel, name: str) -> str | None:
    """The benchmark that a name means: its own, or the one before a score of problems."""
    if name in model.records:
        return name
    return next((each for each in model.records if name.startswith(f"{each}: ")), None)


def _problem_score(found: Outcomes, name: str) -> Outcomes:
    names = [each.benchmark for each in found.by_problem]
    if name not in names:
        have = f"have {', '.join(names)}" if names else "it has none that can be paired"
        raise DataError(
            f"{found.model} on {found.benchmark}: there is no score {name!r}, {have}"
            f"{did_you_mean(name, names, '.')}"
        )
    return found.by_problem[names.index(name)]


def common_dev_share(models: Sequence[KeptModel]) -> float:
    """What to leave out of a comparison, so that no search saw what is compared.

    Sides are told by one hash, so the largest share holds the others.
    """
    return max(model.dev_share for model in models)


def find_models(folder: Path) -> list[KeptModel]:
    """The models of a finished run, of an evaluation, or of imported results, in their order.

    Raises:
        DataError: If there is no such folder, or nothing in it was finished.
    """
    if (folder / "run.json").is_file():
        return _run_models(folder)
    if (folder / SCORES_NAME).is_file():
        return _evaluated_models(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    if (folder / "events.jsonl").is_file() or (folder / "predictions").is_dir():
        raise DataError(
            f"{folder} was never finished: it holds no results. Run the same command again; it "
            f"goes on where it stood. `nan-merge status {folder}` says what is done."
        )
    raise DataError(
        f"{folder} holds neither a run nor an evaluation. Name a folder that `nan-merge run`, "
        "`evaluate` or `import` wrote, e.g. runs/quickstart."
    )


def find_model(reference: str) -> KeptModel:
    """The model that ``FOLDER`` or ``FOLDER:MODEL`` names; a folder alone must hold one model.

    Raises:
        ConfigError: If the model is unknown, or not the only one.
        DataError: As `find_models`.
    """
    folder, name = split_reference(reference)
    models = find_models(folder)
    if name is not None:
        return pick(models, name, str(folder))
    if len(models) != 1:
        raise ConfigError(
            f"{folder} holds {len(models)} models; name one: '{folder}:{models[-1].name}'. It has "
            f"{', '.join(model.name for model in models)}."
        )
    return models[0]


def pick(models: Sequence[KeptModel], name: str, place: str) -> KeptModel:
    """The model of this name.

    Raises:
        ConfigError: If there is none.
    """
    for model in models:
        if model.name == name:
            return model
    names = [model.name for model in models]
    raise ConfigError(
        f"{place} has no model {name!r}{did_you_mean(name, names, '.')} It has {', '.join(names)}."
    )


def split_reference(reference: str) -> tuple[Path, str | None]:
    """Tell ``FOLDER:MODEL`` apart; the folder is the longest part that is there.

    >>> split_reference("no/such/run:TIES: two")
    (PosixPath('no/such/run'), 'TIES: two')
    """
    if Path(reference).is_dir() or ":" not in reference:
        return Path(reference), None
    parts = reference.split(":")
    for count in range(len(parts) - 1, 0, -1):
        folder = ":".join(parts[:count])
        if Path(folder).is_dir():
            return Path(folder), ":".join(parts[count:])
    folder, _, name = reference.partition(":")
    return Path(folder), name


def default_baseline(models: Sequence[KeptModel]) -> KeptModel:
    """What others are compared to: in a run its first merge by Task Arithmetic, else the first."""
    first = models[0]
    if (first.folder / "run.json").is_file():
        name = baseline_model(read_run(first.folder))
        return next((each for each in models if each.name == name), first)
    return first


def read_run(folder: Path) -> RunResults:
    """The results of a finished run.

    Raises:
        DataError: If they are damaged.
    """
    try:
        return read_results(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder} holds damaged results: {error}. Run the same command again."
        ) from error


def _run_models(folder: Path) -> list[KeptModel]:
    results = read_run(folder)
    if not results.predictions:
        raise DataError(
            f"{folder} is of an older version, which did not keep where its answers lie. Run the "
            "same command again; nothing is computed twice."
        )
    kinds = {row.model: row.kind for row in results.rows}
    broken = [row for row in results.rows if row.value != row.value]
    if broken:
        raise DataError(
            f"{folder / 'results.json'}: {broken[0].model} on {broken[0].benchmark} is not a "
            "number. Run the same command again."
        )
    config = _config(results) if results.sweep else None
    sweep = config.sweep if config is not None else None
    return [
        KeptModel(
            name=model,
            kind=kinds.get(model, ""),
            folder=folder,
            records={name: folder / path for name, path in records.items()},
            dev_share=sweep.dev_share if sweep is not None else 0.0,
        )
        for model, records in results.predictions.items()
    ]


def _evaluated_models(folder: Path) -> list[KeptModel]:
    """Models of `scores.json`, which names the records that its scores are of."""
    try:
        entries = json.loads((folder / SCORES_NAME).read_text(encoding="utf-8"))
        keys = {entry["key"] for entry in entries}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{folder / SCORES_NAME} is damaged ({error!r}). `nan-merge rescore {folder}` makes "
            "it again."
        ) from error
    records = [each for each in find_records(folder) if each.info.key in keys]
    models: dict[str, dict[str, Path]] = {}
    for record in records:
        models.setdefault(record.info.model, {})[_column(record, records)] = record.path
    return [KeptModel(name, "", folder, found) for name, found in models.items()]


def _column(record: Record, records: Sequence[Record]) -> str:
    """A benchmark's name, with its profile where that is needed to tell two apart."""
    name = _benchmark_name(record.info)
    same = [
        each
        for each in records
        if each.info.model == record.info.model and _benchmark_name(each.info) == name
    ]
    if len(same) == 1:
        return name
    profiles = [each.info.profile for each in same]
    if profiles.count(record.info.profile) == 1:
        return f"{name}/{record.info.profile}"
    return f"{name}/{record.info.profile} ({record.info.key[:8]})"


def _benchmark_name(info: RecordInfo) -> str:
    is_own = is_own_benchmark(info.benchmark)
    return Path(info.benchmark).stem if is_own else info.benchmark


def _spec_of(info: RecordInfo, folder: Path) -> BenchmarkSpec | None:
    """How a run asked a benchmark, if it asked only some of its samples; else None."""
    if info.source != OWN_SOURCE or not (folder / "run.json").is_file():
        return None
    config = _config(read_run(folder))
    if config is None:
        return None
    for spec in config.evaluate.language_benchmarks:
        if spec.limit is None and not spec.subsets:
            continue
        is_own = is_own_benchmark(spec.name)
        named = str(Path(spec.name).absolute()) if is_own else spec.name
        if named == info.benchmark and find_profile(spec.name, spec.profile).name == info.profile:
            return spec
    return None


def _config(results: RunResults) -> RunConfig | None:
    content: Any = yaml.safe_load(results.config_yaml)
    return RunConfig.model_validate(content) if content else None
