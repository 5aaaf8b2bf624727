"""Find the answer to a question about a picture in what a model wrote.

`vlmeval_option`, `gllava_option` and `wemath_option` follow their upstreams to the letter, known
mistakes included. `chosen_label`, `stated_value` and `stated_list` are ours: they need no judge
model, and where they find no answer they abstain instead of guessing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from evaluators.extraction import without_markup
from evaluators.extraction_numbers import boxed_text

_STATED = r"(?i:\banswer>?\s*(?:is|:)\s*:?|\banswer\s+should\s+be\s*:?|答案(?:是|为)?\s*[：:]?)"
_LAST_TOKENS = 5
_SHORT = 2
"""Texts of options that are no longer are not looked for inside an answer."""


def vlmeval_option(text: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    """VLMEvalKit's `can_infer` (vlmeval/utils/matching_util.py at e8e78f0) without a judge.

    "Option B because A is wrong" gives none, and so does "b". "Z" stands for a refusal there.
    """
    texts = dict(zip(labels, options, strict=True))
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    tokens = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    present = [label for label in labels if label in tokens]
    if len(present) == 1 and tokens.index(present[0]) > len(tokens) - _LAST_TOKENS:
        return present[0]
    if not present and "Z" in tokens:
        return "Z"
    bold = re.search(r"(?i:(?:correct )?answer is )\*\*([A-D])\*\*", text)
    if bold is not None and bold[1] in texts:
        return bold[1]
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, options)):
        return None
    contained = [label for label, option in texts.items() if option.lower() in lowered]
    return contained[0] if len(contained) == 1 else None


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_GLLAVA = (
    r"Answer:([A-D])",
    r"the correct answer is option ([A-D])",
    r"option ([A-D]) is selected",
    r"the answer is option ([A-D])",
    r"the answer is \(([A-D])\)",
)


def gllava_option(text: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    """G-LLaVA's `extract_choice` (scripts/geo_acc_calculate.py at daea277).

    "The answer is B." is read from the last sentence but one, "The answer is B" not at all.
    """
    for pattern in _GLLAVA:
        if match := re.search(pattern, text):
            return match[1]
    sentences = text.split(".")
    match = re.search(r"is ([A-D])", sentences[-2].strip()) if len(sentences) > 1 else None
    return match[1] if match else None


def wemath_option(text: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    """We-Math's rule (evaluation/accuracy.py at a57a0e8): the first letter behind "Answer".

    "Answer: (C)" gives none, and "Answer: Both" gives B.
    """
    rest = re.sub(r"[><:.]", "", text.split("Answer")[-1].strip()).strip()
    return rest[0] if rest and rest[0] in "ABCDEFGH" else None


def chosen_label(text: str, labels: Sequence[str], options: Sequence[str]) -> str | None:
    """The label that an answer chooses; None if it chooses none, or not clearly.

    Read are, in this order: a label that begins what the answer states last ("the answer is (B)",
    "boxed{B}", "B. 145"), the last label in round brackets, and the text of an option if it is the
    only one that the answer holds and longer than two characters. A small letter is no label where
    options are single letters themselves. A letter that merely occurs somewhere is no answer.
    """
    span = stated_span(text)
    is_stated = span != without_markup(text).strip()
    for place, stated in ((span, is_stated), (text.strip(), False)):
        if (found := _leading_label(place, labels, options, stated)) is not None:
            return found
    bracketed = re.findall(r"\(([A-Z])\)", without_markup(text))
    if bracketed:
        return bracketed[-1] if bracketed[-1] in labels else None
    for place in (span, text):
        contained = [
            label
            for label, option in zip(labels, options, strict=False)
            if len(option.strip()) > _SHORT and _holds(place, option.strip())
        ]
        if len(contained) == 1:
            return contained[0]
    return None


def stated_span(text: str) -> str:
    """What an answer states last: in a box, or behind "answer is"; all of it if it states none."""
    if (boxed := boxed_text(text)) is not None:
        return boxed
    text = without_markup(text)
    stated = list(re.finditer(_STATED, text))
    return text[stated[-1].end() :].strip() if stated else text.strip()


def stated_value(text: str, answer_format: str) -> str | None:
    """The last number that an answer states, as MathVista writes its golds; None without one.

    Args:
        text: What the model wrote.
        answer_format: "integer", or "float:DIGITS".

    Returns:
        "7" for an integer, "1.20" for "float:2"; None for an integer that is none.
    """
    numbers = _numbers(stated_span(text)) or _numbers(text)
    value = float(numbers[-1]) if numbers else math.nan
    if not math.isfinite(value):
        return None
    if answer_format == "integer":
        return str(round(value)) if abs(value - round(value)) < 1e-9 else None
    return str(round(value, int(answer_format.partition(":")[2])))


def stated_list(text: str) -> str | None:
    """The last list in square brackets, as Python prints it: "[1, 2.5]"; None without one."""
    lists = re.findall(r"\[([^\[\]]*)\]", text)
    if not lists:
        return None
    parts = [part.strip() for part in lists[-1].split(",")]
    if not all(re.fullmatch(r"-?\d+(?:\.\d+)?", part) for part in parts):
        return None
    return f"[{', '.join(parts)}]"


def _numbers(text: str) -> list[str]:
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", without_markup(text)).replace("−", "-")
    # A minus right behind a digit or letter subtracts or joins: "20-2" ends in 2.
    return re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?|\d+(?:\.\d+)?|-?\.\d+", plain)


def _leading_label(
    text: str, labels: Sequence[str], options: Sequence[str], stated: bool
) -> str | None:
    """A label at the beginning: alone, in brackets, or set off from what follows."""
    plain = re.sub(r"^(?:<+|(?i:option|choice)\s+)", "", without_markup(text).strip()).strip("<> ")
    match = re.match(r"[(\[]?([A-Za-z])(?:[)\]]|[.:,;>]|\s*$|\s*\n|(\s+))", plain)
    if match is None:
        return None
    letter, is_loose = match[1], match[2] is not None
    if letter.islower():
        single = any(len(option.strip()) == 1 for option in options)
        if single or is_loose:
            return None
        letter = letter.upper()
    if letter not in labels:
        return None
    if not is_loose:
        return letter
    place, rest = list(labels).index(letter), plain[match.end() :].strip().lower()
    option = options[place].strip().lower() if place < len(options) else ""
    if option and rest.startswith(option):
        return letter
    # "A green leaf" begins with the article.
    is_word = letter in "AI" and not rest.startswith(("because", "since", "as ", "which"))
    return letter if stated and not is_word else None


def _holds(text: str, option: str) -> bool:
    """Whether an option's text is in an answer, not as a part of another word or number."""
    return re.search(rf"(?<!\w){re.escape(option.lower())}(?!\w)", text.lower()) is not None
