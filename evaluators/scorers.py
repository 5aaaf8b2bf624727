"""Scorers: from an answer to a verdict. They are put together from an extraction and a comparison.

`evaluators.extraction` and its neighbours hold the extractions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence

from evaluators.answers import Answer
from evaluators.profiles import Scorer, ScorerName, Verdict
from evaluators.samples import Sample

ExtractLabel = Callable[[str, Sequence[str]], str | None]
ExtractText = Callable[[str], str | None]
IsEqual = Callable[[str, str], bool]
ExtractOption = Callable[[str, Sequence[str], Sequence[str]], str | None]


def likeliest_choice(sample: Sample, answer: Answer) -> Verdict:
    """The choice with the highest log-probability; of equals the first.

    OpenCompass compares mean losses over all tokens of the prompt, which comes to the same where
    the choices have equally many tokens (icl_ppl_inferencer.py). NaN is an abstention.
    """
    found = _likeliest(sample, answer)
    return Verdict(found[0], found[0] == sample.gold) if found else Verdict(None, False)


def sole_likeliest_choice(sample: Sample, answer: Answer) -> Verdict:
    """As `likeliest_choice`, but equals are an abstention: the first label has no precedence."""
    found = _likeliest(sample, answer)
    return Verdict(found[0], found[0] == sample.gold) if len(found) == 1 else Verdict(None, False)


CHOICE_SCORERS: dict[ScorerName, Scorer] = {
    "compat": likeliest_choice,
    "strict": sole_likeliest_choice,
}


def written_label(extract: ExtractLabel, is_equal: IsEqual = operator.eq) -> Scorer:
    """Right if what is extracted from what was written equals the gold answer.

    Args:
        extract: Completion and labels -> answer, None if there is none.
        is_equal: Takes the answer and the gold answer as the data has it.
    """

    def score(sample: Sample, answer: Answer) -> Verdict:
        found = extract(answer.completion, sample.labels)
        return Verdict(found, found is not None and is_equal(found, sample.gold))

    return score


def written_text(extract: ExtractText, is_equal: IsEqual) -> Scorer:
    """As `written_label`, where labels play no part."""
    return written_label(lambda text, labels: extract(text), is_equal)


def by_subset(scorers: Mapping[str, Scorer]) -> Scorer:
    """Each subset has a scorer of its own."""

    def score(sample: Sample, answer: Answer) -> Verdict:
        return scorers[sample.subset](sample, answer)

    return score


def _likeliest(sample: Sample, answer: Answer) -> list[str]:
    """Labels of the choices with the highest log-probability; none if one is missing."""
    found = [each for each in answer.log_probabilities if each is not None]
    if len(found) != len(sample.choices) or not found or any(map(math.isnan, found)):
        return []
    highest = max(found)
    return [label for label, each in zip(sample.labels, found, strict=True) if each == highest]


def chosen_option(extract: ExtractOption) -> Scorer:
    """Right if the label that is extracted is the gold one, or stands for the same text.

    Args:
        extract: Completion, labels and texts of the options -> label, None if there is none.
    """

    def score(sample: Sample, answer: Answer) -> Verdict:
        found = extract(answer.completion, sample.labels, sample.options)
        if found is None or found == sample.gold:
            return Verdict(found, found is not None)
        texts = dict(zip(sample.labels, sample.options, strict=False))
        same = found in texts and texts[found] == texts.get(sample.gold)
        return Verdict(found, same)

    return score
