"""Find the number that answers a word problem in what a model wrote, and compare numbers.

The functions whose names begin with `opencompass` follow it to the letter, known mistakes
included (opencompass/datasets/gsm8k.py at a5acc4b). The others are ours.
"""

from __future__ import annotations

import re
from fractions import Fraction

from evaluators.extraction import before_next_question

# 1,234.5 and 1234.5; the comma of "1, 2" belongs to no number.
_NUMBER = r"[-−]?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-−]?\.\d+"
_FRACTION = r"[-−]?\\[dt]?frac\s*{\s*\d+\s*}\s*{\s*\d+\s*}"
_STATEMENT = r"(?i:answer\s*(?:is|:)\s*:?|####|答案(?:是|为)?\s*[：:]?|\\?boxed)"


def opencompass_number(text: str) -> str | None:
    """OpenCompass' `gsm8k_postprocess`: the last number before the next "Question:".

    It knows no thousands separators: "1,000" gives 000.
    """
    found = re.findall(r"-?\d+\.\d+|-?\d+", text.split("Question:")[0])
    return found[-1] if found else None


def opencompass_number_equal(found: str, gold: str) -> bool:
    """OpenCompass' `Gsm8kEvaluator.is_equal`: as text, or as numbers but for 1e-6."""
    gold = gold.replace(",", "")
    try:
        return found == gold or abs(float(found) - int(gold)) < 1e-6
    except (ValueError, OverflowError):
        return False


def stated_number(text: str) -> str | None:
    """The number that the answer states last, else the last number; None if there is none.

    Read are "The answer is $1,000.", "#### 18", "boxed{18 dollars}", "boxed{frac{36}{2}}" and
    the like, and no further than to a next question that the model made up itself. After an
    equation the number on its right counts: "the answer is 3 x 6 = 18".
    """
    text = before_next_question(text)
    stated = list(re.finditer(_STATEMENT, text))
    for statement in reversed(stated):
        rest = text[statement.end() :]
        if statement.group().endswith("boxed"):
            rest = _braced(rest)
        line = next((each for each in rest.split("\n") if each.strip()), "")
        sentence = re.split(r"[.。!](?=\s|$)", line, maxsplit=1)[0]
        found = _first_number(sentence.rpartition("=")[2])
        if found is not None:
            return found
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def boxed_text(text: str) -> str | None:
    r"""What stands in the braces of the last \boxed{...} that is closed; None if there is none."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*(?={)", text)]):
        found = _braced(text[start:])
        if text[start:] != found:
            return found.strip() or None
    return None


def numbers_equal(found: str, gold: str) -> bool:
    """Whether two numbers are the same, exactly; separators of thousands do not count."""
    left, right = _value(found), _value(gold)
    return left is not None and left == right


def _numbers(text: str) -> list[str]:
    # A minus right behind a digit or letter subtracts or joins: "20-2" ends in 2.
    pattern = rf"{_FRACTION}|(?<![\w.])(?:{_NUMBER})|(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?"
    return [re.sub(r"\s", "", each).replace("−", "-") for each in re.findall(pattern, text)]


def _first_number(text: str) -> str | None:
    text = re.sub(r"\\text\s*{[^{}]*}|\\[!,;$]", "", text).replace("{,}", ",")
    return next(iter(_numbers(text)), None)


def _braced(text: str) -> str:
    """What stands in the braces that begin a text; all of it if they do not close."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth <= 0:
            return text[1:place]
    return text


def _value(text: str) -> Fraction | None:
    fraction = re.fullmatch(r"(-?)\\[dt]?frac{(\d+)}{(\d+)}", text)
    try:
        if fraction is not None:
            sign = -1 if fraction[1] else 1
            return sign * Fraction(int(fraction[2]), int(fraction[3]))
        return Fraction(text.strip().replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
