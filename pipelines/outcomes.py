"""Verdicts on a model's answers, as arrays, with what must be equal for two models to be paired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.language_scores import Outcome
from evaluators.predictions import Prediction, read_key, read_predictions
from evaluators.profiles import ProblemScore
from nan_merge.errors import DataError
from nan_merge.fingerprint import digest_text
from pipelines.image_records import read_image_info
from pipelines.language_records import OWN_SOURCE, RecordInfo
from pipelines.split import Part


@dataclass(frozen=True)
class Outcomes:
    """One model's verdicts on one benchmark, sorted by sample id.

    Attributes:
        model: The model's name.
        benchmark: The benchmark's name.
        path: The record of answers.
        asked_as: What must be equal for a fair comparison, e.g. "data" -> digest.
        engine: What computed the answers; may differ, but a reader should know.
        sample_ids: (n,) sorted.
        prompts: (n,) digests of the prompts; empty texts for images.
        clusters: (n,) what samples of one source share, within the benchmark alone for language
            benchmarks and across benchmarks for images.
        subsets: (n,) parts of the benchmark that count the same.
        credits: (n,) what the answer adds to a score: 1 if it is right and 0 if it is wrong, or
            anything between where the protocol gives a part.
        abstained: (n,) whether no answer was found in it.
        truncated: (n,) whether it was cut off at the most tokens.
        answers: n answers as the scorer took them; None for an abstention.
        golds: n right answers.
        split_by: n clusters, by which a sweep tells the dev split from the rest.
        by_problem: The benchmark's own scores that several answers make together; in each the
            "samples" are problems, the answers what they show.
        knows_truncation: Whether it is known of every answer if it was cut off; other harnesses
            do not write it down.
    """

    model: str
    benchmark: str
    path: Path
    asked_as: Mapping[str, str]
    engine: Mapping[str, str]
    sample_ids: NDArray[np.str_]
    prompts: NDArray[np.str_]
    clusters: NDArray[np.str_]
    subsets: NDArray[np.str_]
    credits: NDArray[np.float64]
    abstained: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    answers: tuple[str | None, ...]
    golds: tuple[str, ...]
    split_by: tuple[str, ...]
    by_problem: tuple[Outcomes, ...] = ()
    knows_truncation: bool = True


def image_outcomes(path: Path, model: str, benchmark: str) -> Outcomes:
    """Verdicts on a record of predictions of images.

    Raises:
        DataError: If the record is missing, unfinished or damaged, or holds answers that are not
            numbers.
    """
    info = read_image_info(path)
    if read_key(path) != info.key:
        raise unfinished(path, model, benchmark)
    found = sorted(read_predictions(path, Prediction), key=lambda each: each.sample_id)
    refuse_not_a_number(
        sum(each.log_probability != each.log_probability for each in found),
        len(found),
        path,
        model,
        benchmark,
    )
    nothing = np.zeros(len(found), dtype=bool)
    return Outcomes(
        model=model,
        benchmark=benchmark,
        path=path,
        asked_as={"data": info.data, "zero-shot heads": info.heads},
        engine={name: str(value) for name, value in info.engine.items()},
        sample_ids=_texts(each.sample_id for each in found),
        prompts=np.full(len(found), ""),
        clusters=_texts(each.cluster_id for each in found),
        subsets=np.full(len(found), benchmark),
        credits=np.array([each.credit for each in found], dtype=np.float64),
        abstained=nothing,
        truncated=nothing,
        answers=tuple(each.answer for each in found),
        golds=tuple(each.target for each in found),
        split_by=tuple(each.cluster_id for each in found),
    )


def language_outcomes(
    outcomes: Sequence[Outcome], info: RecordInfo, path: Path, benchmark: str
) -> Outcomes:
    """Verdicts on a language model's answers to a benchmark.

    Raises:
        DataError: If answers are not numbers.
    """
    found = sorted(outcomes, key=lambda each: each.sample_id)
    refuse_not_a_number(
        # Without a prompt that fits there is nothing to compute: an abstention, as elsewhere.
        sum(
            None in each.answer.log_probabilities and each.answer.finish_reason != "length"
            for each in found
        ),
        len(found),
        path,
        info.model,
        benchmark,
    )
    return Outcomes(
        model=info.model,
        benchmark=benchmark,
        path=path,
        asked_as=_asked_as(info),
        engine={name: str(value) for name, value in info.engine.items()},
        sample_ids=_texts(each.sample_id for each in found),
        prompts=_texts(each.answer.prompt_digest for each in found),
        clusters=_texts(f"{benchmark}/{each.cluster_id}" for each in found),
        subsets=_texts(each.sample.subset for each in found),
        credits=np.array([each.credit for each in found], dtype=np.float64),
        abstained=np.array([each.verdict.extracted is None for each in found], dtype=bool),
        truncated=np.array([each.answer.finish_reason == "length" for each in found], dtype=bool),
        answers=tuple(each.verdict.extracted for each in found),
        golds=tuple(each.sample.gold for each in found),
        split_by=tuple(each.cluster_id for each in found),
        knows_truncation=all(each.answer.finish_reason != "unknown" for each in found),
    )


def problem_outcomes(whole: Outcomes, name: str, scores: Sequence[ProblemScore]) -> Outcomes:
    """What a model's answers to a benchmark are worth problem by problem.

    Args:
        whole: Its verdicts sample by sample.
        name: The score's.
        scores: The problems'.
    """
    found = sorted(scores, key=lambda each: each.cluster_id)
    own: dict[str, list[int]] = {each.cluster_id: [] for each in found}
    for place, problem in enumerate(whole.split_by):
        if problem in own:
            own[problem].append(place)
    places = [own[each.cluster_id] for each in found]
    prompts = [digest_text("\n".join(whole.prompts[each].tolist())) for each in places]
    return replace(
        whole,
        benchmark=f"{whole.benchmark}: {name}",
        sample_ids=_texts(each.cluster_id for each in found),
        prompts=_texts(prompts),
        clusters=_texts(f"{whole.benchmark}/{each.cluster_id}" for each in found),
        subsets=np.full(len(found), whole.benchmark),
        credits=np.array([each.credit for each in found], dtype=np.float64),
        abstained=np.array([whole.abstained[each].any() for each in places], dtype=bool),
        truncated=np.array([whole.truncated[each].any() for each in places], dtype=bool),
        answers=tuple(each.finding for each in found),
        golds=("",) * len(found),
        split_by=tuple(each.cluster_id for each in found),
    )


def unseen(outcomes: Outcomes, part: Part) -> Outcomes:
    """Only the samples of a part of the data.

    Raises:
        DataError: If none is left.
    """
    kept = np.flatnonzero([part(cluster) for cluster in outcomes.split_by])
    if not len(kept):
        raise DataError(
            f"{outcomes.model} on {outcomes.benchmark}: a search saw all samples, none is left."
        )
    arrays = ("sample_ids", "prompts", "clusters", "subsets", "credits", "abstained", "truncated")
    texts = ("answers", "golds", "split_by")
    changes = {name: getattr(outcomes, name)[kept] for name in arrays}
    changes |= {name: tuple(getattr(outcomes, name)[place] for place in kept) for name in texts}
    problems = [each for each in outcomes.by_problem if any(map(part, each.split_by))]
    return replace(outcomes, **changes, by_problem=tuple(unseen(each, part) for each in problems))


def refuse_not_a_number(
    count: int, num_samples: int, path: Path, model: str, benchmark: str
) -> None:
    """Raise `DataError` if log-probabilities are NaN: such a model answers by chance."""
    if count:
        raise DataError(
            f"{model} on {benchmark}: {count:,} of {num_samples:,} log-probabilities are not "
            f"numbers ({path}). The model computes NaN, so its score means nothing. Look for NaN "
            "or infinity in its weights (`nan-merge verify`), or evaluate it in float32."
        )


def unfinished(path: Path, model: str, benchmark: str) -> DataError:
    """The error about a record that is not there in full."""
    return DataError(
        f"{model} on {benchmark} was never finished: {path} is missing or of other weights. Run "
        "the same command again; it asks only what is missing."
    )


def _asked_as(info: RecordInfo) -> dict[str, str]:
    """What must be equal: data, profile, and whose protocol it is."""
    own = info.source == OWN_SOURCE
    return {
        "harness": info.source.partition(" ")[0],
        "profile": str(info.made_of.get("profile")) if own else info.profile,
        "chat template": str(info.uses_chat_template),
        "data": str(info.made_of.get("data")),
    }


def _texts(values: Iterable[str]) -> NDArray[np.str_]:
    return np.array(list(values), dtype=np.str_)
