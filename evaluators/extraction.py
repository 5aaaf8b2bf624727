"""Find the label of the chosen option in what a model wrote.

The first functions follow OpenCompass to the letter, known mistakes included
(opencompass/utils/text_postprocessors.py and the configurations of the benchmarks, at a5acc4b).
`stated_label` is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

# OpenCompass' `first_option_postprocess`: tried in this order, X for the class of labels. Where a
# pattern has a group that matched, the answer lies in the group, else in the whole match.
_FIRST_OPTION = (
    r"答案是?\s*(X)",
    r"答案是?\s*：\s*(X)",
    r"答案是?\s*:\s*(X)",
    r"答案选项应?该?是\s*(X)",
    r"答案选项应?该?为\s*(X)",
    r"答案应该?是\s*(X)",
    r"答案应该?选\s*(X)",
    r"答案选项为?\s*：\s*(X)",
    r"答案选项为?\s+\(?\*?\*?(X)\*?\*?\)?",
    r"答案选项是?\s*:\s*(X)",
    r"答案为\s*(X)",
    r"答案选\s*(X)",
    r"选择?\s*(X)",
    r"故选?\s*(X)只有选?项?\s?(X)\s?是?对",  # two patterns, run into one upstream
    r"只有选?项?\s?(X)\s?是?错",
    r"只有选?项?\s?(X)\s?不?正确",
    r"只有选?项?\s?(X)\s?错误",
    r"说法不?对选?项?的?是\s?(X)",
    r"说法不?正确选?项?的?是\s?(X)",
    r"说法错误选?项?的?是\s?(X)",
    r"(X)\s?是正确的",
    r"(X)\s?是正确答案",
    r"选项\s?(X)\s?正确",
    r"所以答\s?(X)",
    r"所以\s?(X[.。$]?$)",
    r"所有\s?(X[.。$]?$)",
    r"[\s，：:,](X)[。，,\.]?$",
    r"[\s，,：:][故即](X)[。\.]?$",
    r"[\s，,：:]因此(X)[。\.]?$",
    r"[是为。]\s?(X)[。\.]?$",
    r"因此\s?(X)[。\.]?$",
    r"显然\s?(X)[。\.]?$",
    r"答案是\s?(\S+)(?:。|$)",
    r"答案应该是\s?(\S+)(?:。|$)",
    r"答案为\s?(\S+)(?:。|$)",
    r"(?i)ANSWER\s*:\s*(X)",
    r"[Tt]he answer is:?\s+\(?(X)\)?",
    r"[Tt]he answer is:?\s+\(?\*?\*?(X)\*?\*?\)?",
    r"[Tt]he answer is option:?\s+\(?(X)\)?",
    r"[Tt]he correct answer is:?\s+\(?(X)\)?",
    r"[Tt]he correct answer is option:?\s+\(?(X)\)?",
    r"[Tt]he correct answer is:?.*?boxed{(X)}",
    r"[Tt]he correct option is:?.*?boxed{(X)}",
    r"[Tt]he correct answer option is:?.*?boxed{(X)}",
    r"[Tt]he answer to the question is:?\s+\(?(X)\)?",
    r"^选项\s?(X)",
    r"^(X)\s?选?项",
    r"(\s|^)X[\s。，,：:\.$]",
    r"1.\s?(.*?)$",
    r"1.\s?(X)[.。$]?$",
    r"(X):",
    r"(X)",
)

# What states an answer, up to the label itself.
_STATEMENT = (
    r"(?:answer|choice|option)(?:\s+(?:choice|option))?\s*(?:is|:|would\s+be|should\s+be)\s*:?"
    r"|答案(?:选项)?(?:应该?)?(?:是|为|选)?\s*[：:]?|(?<!不)选择?|boxed"
)


def first_option(text: str, labels: Sequence[str]) -> str | None:
    """OpenCompass' `first_option_postprocess`: the first of some fifty patterns that is found.

    Of several labels in what it matched it takes the first in the order of the labels.
    """
    text = text.strip()
    for pattern in _first_option_patterns("".join(labels)):
        match = pattern.search(text)
        if match is None:
            continue
        found = match.group(1) or match.group(0)
        for label in labels:
            if label in found:
                return label
    return None


def first_capital(text: str, labels: Sequence[str]) -> str | None:
    """OpenCompass' `first_capital_postprocess`: the first capital letter, whatever it belongs to.

    "The answer is B" gives T.
    """
    return next((letter for letter in text if letter.isupper()), None)


def answer_pattern(text: str, labels: Sequence[str]) -> str | None:
    """OpenCompass' `match_answer_pattern` with simple-evals' pattern: the first "ANSWER: X".

    The letter comes as it was written: "ANSWER: b" gives b, which is wrong.
    """
    match = re.search(r"(?i)ANSWER\s*:\s*([A-D])", text)
    return match.group(1) if match else None


def stated_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that the answer states last; None if it states none.

    Read are "the answer is (B)", "ANSWER: b", "答案：B", "boxed{B}" and the like, and an answer
    that begins with the label alone: "B", "(B)", "B. Paris". What the model wrote after a next
    question of its own does not count. A letter that merely occurs somewhere is no answer.
    """
    text = without_markup(before_next_question(text))
    stated, alone = _stated_patterns("".join(labels))
    found = stated.findall(text) or alone.findall(text.strip())
    return found[-1].upper() if found else None


def before_next_question(text: str) -> str:
    """What a model wrote before it made up a next question, as base models do."""
    return re.split(r"\n\s*(?:Q:|Question:|题目[:：])", text, maxsplit=1)[0]


def without_markup(text: str) -> str:
    """Text without Markdown's emphasis and the signs of LaTeX around a formula."""
    return re.sub(r"[*`$_]|\\(?:text|mathrm|mathbf)|\\[()\[\]]", "", text)


@lru_cache
def _first_option_patterns(labels: str) -> list[re.Pattern[str]]:
    return [re.compile(each.replace("X", f"[{labels}]"), re.DOTALL) for each in _FIRST_OPTION]


@lru_cache
def _stated_patterns(labels: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    # ASCII: a Chinese character may follow a label without a blank. A small letter may also be
    # the article, so something must end it.
    capital = rf"[{labels}](?![A-Za-z0-9_'])"
    small = rf"[{labels.lower()}](?=\s*(?:[)\]}}）.,:;!。，]|$|\n))"
    stated = rf"(?i:{_STATEMENT})\s*(?:option\s+)?[(\[{{（\s]{{0,4}}({capital}|{small})"
    alone = rf"^(?:[Oo]ption\s+)?[(\[（]?([{labels}])[)\]）]?(?:[.:,;、，。：]|\s*$|\s*\n)"
    return re.compile(stated), re.compile(alone)
