"""The command `nan-merge gate`: find two models, pair them, decide, write what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nan_merge.config_messages import did_you_mean
from nan_merge.errors import ConfigError, DataError
from pipelines.compare import AVERAGE, average_pairs, engine_note, split_notes
from pipelines.compared_models import (
    AnswerReader,
    KeptModel,
    column_of,
    common_dev_share,
    find_model,
    find_models,
    pick,
    split_reference,
)
from pipelines.extras import require
from pipelines.gate import Finding, Rules, Verdict, decide, overall
from pipelines.gate_config import Gate
from pipelines.gate_view import GateFiles, GateReport, print_report, write_reports
from pipelines.outcomes import Outcomes
from pipelines.paired import Pairs
from pipelines.pairing import pair
from pipelines.tracking import TrackingError

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class GateModels:
    """The two models of a gate, and the baseline's repetition."""

    candidate: KeptModel
    baseline: KeptModel
    repeat: KeptModel | None


def gate_command(
    gate: Gate,
    run_folder: Path | None,
    reader: AnswerReader,
    console: Console,
    files: GateFiles,
) -> GateReport:
    """Decide whether a candidate may take a baseline's place; print and write it.

    Args:
        gate: What is decided.
        run_folder: Of the run whose models may be called by their names alone.
        reader: Reads answers.
        console: Where to print.
        files: What to write besides.

    Raises:
        NanMergeError: With a message for the user.
    """
    require(["scipy", "statsmodels"])
    models = _find(gate, run_folder, reader)
    report = _decided(gate, models, reader)
    print_report(report, console)
    write_reports(report, files, console)
    if gate.mark_passed and report.verdict == "pass":
        _mark_passed(models.candidate, report, console)
    return report


def _mark_passed(candidate: KeptModel, report: GateReport, console: Console) -> None:
    """A server that is down changes no verdict: the mark waits for it on disk."""
    from pipelines.track_sync import mark_passed

    margins = {f"margin/{each.name}": f"{each.margin * 100:g}" for each in report.findings}
    try:
        version = mark_passed(
            candidate.folder, candidate.name, verdict={"baseline": report.baseline, **margins}
        )
    except TrackingError as error:
        console.print(f"warning: {error}", soft_wrap=True, markup=False)
    else:
        console.print(f"MLflow    {version} has the alias passed", soft_wrap=True, markup=False)


def evaluate_gate(gate: Gate, run_folder: Path | None, reader: AnswerReader) -> GateReport:
    """What `gate_command` decides, without printing.

    Raises:
        NanMergeError: If the models cannot be found or paired.
    """
    return _decided(gate, _find(gate, run_folder, reader), reader)


def _decided(gate: Gate, models: GateModels, reader: AnswerReader) -> GateReport:
    names = _benchmarks(gate, models)
    involved = [models.candidate, models.baseline, models.repeat or models.baseline]
    dev_share = common_dev_share(involved)
    candidate = {name: reader.read(models.candidate, name, dev_share) for name in names}
    baseline = {name: reader.read(models.baseline, name, dev_share) for name in names}
    pairs = {name: pair(candidate[name], baseline[name]) for name in names}
    repeats: dict[str, Pairs] = {}
    if models.repeat is not None:
        repeated = {name: reader.read(models.repeat, name, dev_share) for name in names}
        repeats = _repeats(repeated, baseline)
        repeats[AVERAGE] = average_pairs(baseline, repeats)
    tested = dict(pairs) if gate.decide_on != AVERAGE else {}
    if gate.decide_on != "benchmarks":
        tested[AVERAGE] = average_pairs(candidate, pairs)
    rules = Rules(gate.alpha, gate.min_samples, gate.resamples, gate.seed)
    findings = decide(tested, _margins(gate, list(tested)), rules, repeats or None)
    breaches = [each for name in names for each in _breaches(gate, candidate[name], baseline[name])]
    return GateReport(
        verdict=overall(findings, breaches),
        candidate=f"{models.candidate.name} ({models.candidate.folder})",
        baseline=f"{models.baseline.name} ({models.baseline.folder})",
        findings=tuple(findings),
        breaches=tuple(breaches),
        notes=(*split_notes(dev_share), *_notes(candidate, baseline, findings)),
        rules=rules,
        is_repeated=models.repeat is not None,
    )


def _find(gate: Gate, run_folder: Path | None, reader: AnswerReader) -> GateModels:
    if gate.candidate is None or gate.baseline is None:
        lacking = "candidate" if gate.candidate is None else "baseline"
        raise ConfigError(
            f"gate.{lacking} is missing: name a model of the run, or FOLDER:MODEL, under `gate:` "
            f"in the run file, or with --{lacking}."
        )
    if run_folder is not None and not run_folder.is_dir():
        raise DataError(
            f"There is no folder {run_folder}: the run was never made. `nan-merge run` it first, "
            "with the same file."
        )
    own = find_models(run_folder) if run_folder is not None else []
    candidate = _model(gate.candidate, own, run_folder, None)
    baseline = _model(gate.baseline, own, run_folder, candidate.name)
    if (candidate.folder, candidate.name) == (baseline.folder, baseline.name):
        raise ConfigError(
            f"gate: {candidate.name} is candidate and baseline at once; it would always pass."
        )
    repeat = None
    if gate.repeat is not None:
        repeat = _model(gate.repeat, own, run_folder, baseline.name)
        if repeat.folder.resolve() == baseline.folder.resolve() and repeat.name == baseline.name:
            raise ConfigError(
                "gate.repeat is the baseline's own answers. Evaluate the baseline once more into "
                "another folder (`--output` or `run_folder=...`) and name that."
            )
    again = reader.view(repeat) if repeat is not None else None
    return GateModels(reader.view(candidate), reader.view(baseline), again)


def _model(
    reference: str, own: Sequence[KeptModel], run_folder: Path | None, same_name: str | None
) -> KeptModel:
    """A model of the run by its name, or one of another folder."""
    for model in own:
        if model.name == reference:
            return model
    folder, name = split_reference(reference)
    if name is None and not folder.is_dir() and run_folder is not None:
        return pick(own, reference, str(run_folder))  # says which models there are
    if name is None and same_name is not None:
        for model in find_models(folder):
            if model.name == same_name:
                return model
    return find_model(reference)


def _benchmarks(gate: Gate, models: GateModels) -> tuple[str, ...]:
    names = gate.benchmarks or tuple(models.baseline.records)
    for model in (models.candidate, models.baseline, models.repeat):
        if model is None:
            continue
        lacking = [name for name in names if column_of(model, name) is None]
        if lacking:
            raise DataError(
                f"{model.name} ({model.folder}) was not asked {', '.join(lacking)}; it has "
                f"{', '.join(model.records)}. Evaluate it on the same benchmarks, or name those "
                "to decide on under `gate.benchmarks`."
            )
    return names


def _margins(gate: Gate, names: Sequence[str]) -> dict[str, float]:
    """Name -> margin as a share of 1."""
    for name in gate.margins:
        if name not in names:
            raise ConfigError(
                f"gate.margins.{name}: nothing of this name is decided on, have "
                f"{', '.join(names)}{did_you_mean(name, names, '.')}"
            )
    lacking = [name for name in names if name not in gate.margins]
    if gate.margin is None and lacking:
        raise ConfigError(
            f"gate.margin is missing: how many percentage points may be lost on "
            f"{', '.join(lacking)}? E.g. `margin: 1.0` under `gate:`, or --margin 1.0."
        )
    default = gate.margin if gate.margin is not None else 0.0
    return {name: gate.margins.get(name, default) / 100 for name in names}


def _repeats(
    repeated: Mapping[str, Outcomes], baseline: Mapping[str, Outcomes]
) -> dict[str, Pairs]:
    return {name: pair(repeated[name], baseline[name]) for name in baseline}


def _breaches(gate: Gate, candidate: Outcomes, baseline: Outcomes) -> list[str]:
    """Limits on rates that the candidate breaks; counted, not estimated.

    Raises:
        DataError: If a limit is set on what is not known of the candidate.
    """
    if gate.max_truncated is not None and not candidate.knows_truncation:
        raise DataError(
            f"gate.max_truncated: {_unknown_truncation([candidate])} Remove the limit, or evaluate "
            f"{candidate.model} with `nan-merge evaluate`."
        )
    knows_rise = candidate.knows_truncation and baseline.knows_truncation
    found: list[str] = []
    for what, most, rise, now, before in (
        ("abstained", gate.max_abstained, gate.max_abstained_rise,
         candidate.abstained, baseline.abstained),
        ("truncated", gate.max_truncated, gate.max_truncated_rise if knows_rise else None,
         candidate.truncated, baseline.truncated),
    ):  # fmt: skip
        rate, reference = float(now.mean()) * 100, float(before.mean()) * 100
        said = f"{candidate.benchmark}: {rate:.1f} % {what}"
        if most is not None and rate > most:
            found.append(f"{said}, more than {most:g} %")
        if rise is not None and rate - reference > rise:
            found.append(f"{said}, {rate - reference:.1f} points more than the baseline")
    return found


def _unknown_truncation(outcomes: Sequence[Outcomes]) -> str:
    names = " and of ".join(f"{each.model} ({each.path})" for each in outcomes)
    return f"{outcomes[0].benchmark}: whether answers were cut off is not known of {names}."


def _notes(
    candidate: Mapping[str, Outcomes],
    baseline: Mapping[str, Outcomes],
    findings: Sequence[Finding],
) -> list[str]:
    notes = [
        engine_note(found, baseline[name], found.model)
        for name, found in candidate.items()
        if found.engine != baseline[name].engine
    ]
    for name, found in candidate.items():
        if unknown := [each for each in (found, baseline[name]) if not each.knows_truncation]:
            notes.append(f"{_unknown_truncation(unknown)} No limit on that was checked.")
    flips = sum(each.difference.num_won + each.difference.num_lost for each in findings)
    if flips == 0:
        notes.append("No sample flipped: the candidate's answers are as right as the baseline's.")
    return list(dict.fromkeys(notes))
