"""Find the answer to a task of BIG-Bench Hard in what a model wrote, and compare answers.

The functions whose names begin with `opencompass` follow it to the letter, known mistakes
included (opencompass/datasets/bbh.py at a5acc4b). The others are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluators.extraction import before_next_question, stated_label, without_markup
from evaluators.extraction_numbers import numbers_equal

_STATEMENT = re.compile(r"answer\s+is\s*:?\s*|answer\s*:\s*|boxed\s*(?={)", re.IGNORECASE)


def opencompass_choice(text: str) -> str | None:
    """OpenCompass' `bbh_mcq_postprocess`: a letter behind the first "answer is ".

    "the answer is not (A). So the answer is (C)." gives A; without a capital letter all of the
    text is the answer.
    """
    parts = text.split("answer is ")
    text = parts[1].strip() if len(parts) > 1 else text
    match = re.search(r"\(([A-Z])\)*", text) or re.search(r"([A-Z])", text)
    return match.group(1) if match else text or None


def opencompass_choice_equal(found: str, gold: str) -> bool:
    """OpenCompass' `BBHEvaluator_mcq`: the gold answer is read as the model's is.

    Three gold answers are no labels, e.g. "Monsters, Inc", which becomes M: no model is right.
    """
    return found == opencompass_choice(gold)


def opencompass_text(text: str) -> str | None:
    """OpenCompass' `bbh_freeform_postprocess`: the line behind the last "answer is".

    It reads on into questions that the model made up itself.
    """
    parts = re.split(r"answer is\s*:?\s*", text, flags=re.IGNORECASE)
    text = parts[-1].strip() if len(parts) > 1 else text
    text = text.split("\n")[0].strip()
    if text.endswith("."):
        text = text[:-1].strip()
    bold = re.search(r"\*\*(.*?)\*\*", text)
    text = bold.group(1).strip() if bold else text
    verdict = re.match(r"(yes|no|true|false)\b", text, flags=re.IGNORECASE)
    if verdict:
        return verdict.group(1).capitalize()
    if not re.search(r"\d\s*,\s*\d", text):
        text = re.sub(r"\s*,\s*", " ", text)
    return re.sub(r"\s+", " ", text).strip() or None


def opencompass_text_equal(found: str, gold: str) -> bool:
    """OpenCompass' `BBHEvaluator`: as text but for capitals; gold is read as an answer is."""
    return found.casefold() == (opencompass_text(gold) or "").casefold()


def stated_choice(text: str, labels: Sequence[str]) -> str | None:
    """The label that the answer states last, else the text that it states; None if neither."""
    label = stated_label(text, labels)
    return label or _behind_statement(without_markup(before_next_question(text)))


def stated_choice_equal(found: str, gold: str) -> bool:
    """As labels; as text where the gold answer is none."""
    label = re.fullmatch(r"\(([A-Z])\)", gold)
    return found == label.group(1) if label else found.casefold() == gold.casefold()


def stated_text(text: str) -> str | None:
    """What stands behind the last "answer is", "answer:" or "boxed" before a next question.

    An answer of one line that states nothing is taken whole; a longer one has no answer.
    """
    text = without_markup(before_next_question(text)).strip()
    if _STATEMENT.search(text):
        return _behind_statement(text)
    return _clean(text) if "\n" not in text else None


def stated_text_equal(found: str, gold: str) -> bool:
    """Same number, same words in the same order, same brackets, or same yes, no, true, false.

    What follows a verdict does not count: "no, because ..." is no.
    """
    found, gold = found.casefold(), gold.casefold().strip()
    if gold in ("yes", "no", "true", "false", "valid", "invalid"):
        return re.match(r"[a-z]*", found).group() == gold  # pyright: ignore[reportOptionalMemberAccess]
    if re.fullmatch(r"-?\d+", gold):
        number = re.match(r"-?[\d,]*\.?\d+", found)
        return number is not None and numbers_equal(number.group(), gold)
    if not re.search(r"\w", gold):  # brackets
        return re.sub(r"[\s,]", "", found) == re.sub(r"\s", "", gold)
    return re.split(r"[\s,]+", found) == gold.split()


def _behind_statement(text: str) -> str | None:
    statements = list(_STATEMENT.finditer(text))
    if not statements:
        return None
    found = text[statements[-1].end() :].strip().split("\n")[0]
    braced = re.match(r"{([^{}]*)}", found) if "boxed" in statements[-1].group() else None
    return _clean(braced.group(1) if braced else found)


def _clean(text: str) -> str | None:
    return text.strip().rstrip(".。").strip(" \"'") or None
