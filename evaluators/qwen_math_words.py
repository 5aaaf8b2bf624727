"""The words that the toolkit of Qwen2.5-Math takes for units or for numbers, one after the other.

QwenLM/Qwen2.5-Math at a45202b, evaluation/parser.py (unit_texts, convert_word_number), and the
package word2number 1.1, which it calls. The units are regular expressions, and their order
matters: what one leaves behind another may find.
"""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = (
    "east", "degree", "mph", "kmph", "ft", "m sqaure", " m east", "sq m", "deg", "mile", "q .",
    "monkey", "prime", "ratio", "profit of rs", "rd", "o", "gm", "p . m", "lb", "tile", "per",
    "dm", "lt", "gain", "ab", "way", "west", "a .", "b .", "c .", "d .", "e .", "f .", "g .",
    "h .", "t", "a", "h", "no change", "men", "soldier", "pie", "bc", "excess", "st", "inches",
    "noon", "percent", "by", "gal", "kmh", "c", "acre", "rise", "a . m", "th", "π r 2", "sq",
    "mark", "l", "toy", "coin", "sq . m", "gallon", "° f", "profit", "minw", "yr", "women",
    "feet", "am", "pm", "hr", "cu cm", "square", "v â € ™", "are", "rupee", "rounds", "cubic",
    "cc", "mtr", "s", "ohm", "number", "kmph", "day", "hour", "minute", "min", "second", "man",
    "woman", "sec", "cube", "mt", "sq inch", "mp", "∏ cm ³", "hectare", "more", "sec", "unit",
    "cu . m", "cm 2", "rs .", "rs", "kg", "g", "month", "km", "m", "cm", "mm", "apple",
    "liter", "loss", "yard", "pure", "year", "increase", "decrease", "d", "less", "Surface",
    "litre", "pi sq m", "s .", "metre", "meter", "inch",
)  # fmt: skip
UNITS: tuple[str, ...] = (*_UNITS, *(f"{unit}s" for unit in _UNITS))

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"billion": 10**9, "million": 10**6, "thousand": 10**3}
_VALUES: dict[str, int] = {
    **{word: value for value, word in enumerate((*_ONES, *_TEENS))},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
    "hundred": 100,
    **_SCALES,
}


def number_from_words(text: str) -> str:
    """The number that the words of a text make; the text itself if they make none.

    Any words in between are passed over: "one of 18" gives 1. It is wrong where word2number is:
    "two million three thousand" gives 2004003.
    """
    text_of_words = text.replace("-", " ").lower()
    try:
        if text_of_words.isdigit():
            return str(int(text_of_words))
        words = [each for each in text_of_words.split() if each in _VALUES or each == "point"]
        return str(_number(words))
    except ValueError:
        return text


def _number(words: list[str]) -> int | float:
    if not words or any(words.count(each) > 1 for each in (*_SCALES, "point")):
        raise ValueError("no number")
    place = words.index("point") if "point" in words else len(words)
    whole, decimals = _whole(words[:place]), words[place + 1 :]
    if not decimals or any(each not in _ONES for each in decimals):
        return whole
    return whole + float("0." + "".join(str(_VALUES[each]) for each in decimals))


def _whole(words: list[str]) -> int:
    places = [words.index(scale) for scale in _SCALES if scale in words]
    if places != sorted(places):
        raise ValueError("scales in the wrong order")
    if len(words) < 2:
        return sum(_VALUES[each] for each in words)
    total = start = 0
    for place in places:
        total += _hundreds(words[start:place]) * _VALUES[words[place]]
        start = place + 1
    # What follows the last scale that does not end the words is added, other scales included.
    inner = [place for place in places if place != len(words) - 1]
    if inner:
        return total + _hundreds(words[inner[-1] + 1 :])
    return total if places else _hundreds(words)


def _hundreds(words: Sequence[str]) -> int:
    values = [_VALUES[each] for each in words]
    match values:
        case []:
            raise ValueError("a scale without a number")
        case [first, second, third, fourth]:
            return first * second + third + fourth
        case [first, second, third]:
            return first * second + third
        case [first, second]:
            return first * second if 100 in values else first + second
        case _:
            return values[0]
