"""Show answers of language models like a person would read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from evaluators.judge import request_id
from evaluators.language_scores import Outcome
from evaluators.profiles import ScorerName
from evaluators.rendering import Prompt, load_tokenizer, prompt_text, wording_of
from evaluators.samples import Sample
from nan_merge.errors import ConfigError, NanMergeError
from pipelines.flips import Flips
from pipelines.image_view import print_title
from pipelines.judging import judged_benchmark, judges_of, pick_judge, said_by
from pipelines.language_benchmarks import OpenBenchmark
from pipelines.language_records import Record, find_extractions, find_records
from pipelines.language_scores import benchmark_of, first_scorer, outcomes_of


def show_predictions(
    folder: Path,
    console: Console,
    *,
    benchmark: str | None = None,
    sample: str | None = None,
    wrong: bool = False,
    limit: int = 10,
    scorer: ScorerName | None = None,
    data: Path | None = None,
    flips: Flips | None = None,
    judge: str | None = None,
) -> int:
    """Print prompts, completions and verdicts of the records in a folder.

    Args:
        folder: Of an evaluation or a run, or one below it.
        console: Where to print.
        benchmark: Only of this benchmark.
        sample: Only this sample's.
        wrong: Only what was answered wrong.
        limit: Most samples of each record.
        scorer: Whose verdicts; the one that tables show if None.
        data: The data's folder, if it is not where it was.
        flips: Only these samples.
        judge: Name of a judge; what it read counts and is shown, and only where it read.

    Returns:
        How many samples were shown.

    Raises:
        DataError: If there are no records, or their data is gone or changed.
        ConfigError: If no record is of this benchmark, or none has this sample.
    """
    records = [
        each
        for each in find_records(folder)
        if benchmark in (None, each.info.benchmark, Path(each.info.benchmark).stem)
    ]
    if not records:
        raise ConfigError(f"{folder} holds no predictions on {benchmark}.")
    num_shown, is_known = 0, sample is None
    readings = _readings(records, judge, folder) if judge is not None else {}
    for record in records:
        if judge is not None and record.path not in readings:
            continue
        opened, said = benchmark_of(record, data), dict[str, str]()
        if judge is not None:
            said = said_by(readings[record.path])
            opened = judged_benchmark(opened, judge, readings[record.path])
        asked = frozenset({sample}) if sample is not None else None
        if flips is not None:
            answered = {each.sample_id for each in record.answers()}
            asked = flips.get(opened.profile.benchmark, frozenset()) & answered
            if not asked:
                continue
        if sample is not None and sample not in {each.sample_id for each in record.answers()}:
            continue
        is_known = True
        outcomes = outcomes_of(record, opened, scorer or first_scorer(opened), asked)
        shown = [each for each in outcomes if not (wrong and each.is_correct)][:limit]
        num_shown += len(shown)
        _show_record(record, opened, shown, len(outcomes), console, said)
    if not is_known:
        raise ConfigError(f"{folder} holds no answer to a sample {sample}.")
    return num_shown


def _readings(records: Sequence[Record], judge: str, folder: Path) -> dict[Path, Record]:
    """Record's path -> what the judge wrote about it; raises `DataError` if it read none."""
    extractions = find_extractions(folder)
    judges = {each.path: judges_of(each, extractions) for each in records}
    found = {path: names[judge] for path, names in judges.items() if judge in names}
    if not found:
        known = {name: each for names in judges.values() for name, each in names.items()}
        pick_judge(judge, known, str(folder), folder)
    return found


def _show_record(
    record: Record,
    benchmark: OpenBenchmark,
    chosen: Sequence[Outcome],
    num_outcomes: int,
    console: Console,
    said: Mapping[str, str],
) -> None:
    print_title(console, record.info.model, benchmark.name, len(chosen), num_outcomes)
    for outcome in chosen:
        text = Text()
        verdict = "right" if outcome.is_correct else "wrong"
        text.append(f"\n{outcome.sample_id}: {verdict}\n", "green" if verdict == "right" else "red")
        parts = _parts(record, benchmark, outcome)
        read = said.get(request_id(outcome.sample, outcome.answer)) if said else None
        if read is not None:
            parts.insert(-2, ("judge", read or "(empty)"))
        for name, content in parts:
            text.append(f"{name}:", "bold")
            shown = content.encode(errors="replace").decode()  # half a surrogate pair is a "?"
            text.append(f"\n{shown}\n" if "\n" in shown else f" {shown}\n")
        console.print(text, soft_wrap=True)


def _parts(record: Record, benchmark: OpenBenchmark, outcome: Outcome) -> list[tuple[str, str]]:
    answer, sample, verdict = outcome.answer, outcome.sample, outcome.verdict
    parts = [("prompt", _prompt(record, benchmark, outcome))]
    if answer.finish_reason == "choice":
        parts.append(("log-probabilities", _choices(outcome)))
    else:
        parts.append(("completion", answer.completion or "(empty)"))
        if answer.finish_reason != "unknown":
            parts.append(("ended", f"{answer.finish_reason}, after {answer.num_tokens} tokens"))
    extracted = "(none found: an abstention)" if verdict.extracted is None else verdict.extracted
    return [*parts, ("extracted", extracted), ("gold", sample.gold)]


def _choices(outcome: Outcome) -> str:
    labels, found = outcome.sample.labels, outcome.answer.log_probabilities
    return "  ".join(
        f"{label} {'not a number' if value is None else f'{value:.3f}'}"
        for label, value in zip(labels, found, strict=False)
    )


def _prompt(record: Record, benchmark: OpenBenchmark, outcome: Outcome) -> str:
    """The prompt's text, made again as it was made then."""
    info, answer = record.info, outcome.answer
    # Of an imported record the prompt is there as text, whatever was made of it then.
    is_chat = benchmark.uses_chat_template
    wording = wording_of(benchmark.profile, is_chat)
    num_shots = len(outcome.sample.shots) - answer.num_dropped_shots
    try:
        tokenizer = _tokenizer(info.folder) if is_chat else None
        text = prompt_text(tokenizer, outcome.sample, wording, num_shots)
    except NanMergeError:
        plain = wording_of(benchmark.profile, False)
        text = prompt_text(None, outcome.sample, plain, num_shots)
        return f"{text}\n(without the chat template, which {info.folder} has no more)"
    if _digest(text, outcome.sample) != answer.prompt_digest:
        return f"{text}\n(made again; the model was shown another text)"
    return text


def _digest(text: str, sample: Sample) -> str:
    return Prompt(text, (), image_digests=tuple(each.digest for each in sample.images)).digest


@cache
def _tokenizer(folder: str) -> Any:
    return load_tokenizer(Path(folder))
