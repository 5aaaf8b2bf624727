"""A language model that reads what another one answered, where the rules find no answer in it.

As MathVista's authors do it (evaluation/extract_answer.py): rules first, and of what they leave a
language model is shown the question and the response, without the picture, and writes the short
answer down. It judges nothing: what it wrote is read by the same rule and compared with the gold
answer as ever. Their prompt and their GPT are not used, and no option is taken for being near, so
such scores have a name of their own and compare neither with theirs nor with those without a judge.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evaluators.answers import Answer
from evaluators.benchmarks.upstreams import mathvista
from evaluators.profiles import Decoding, Profile, Scorer, Verdict
from evaluators.samples import Message, Piece, Sample
from nan_merge.errors import DataError

EXTRACTION = "answer-extraction"
"""What records of judges' answers have in the place of a benchmark's name."""
NO_ANSWER = "no answer"
MOST_TOKENS = 32
_TASK = (
    "You are shown questions and responses to them. Write down the final answer that a response "
    "gives, and nothing else. Do not answer the question yourself. If a response gives no answer, "
    f"write: {NO_ANSWER}"
)
_DEMONSTRATIONS = (
    (
        "Which bar is longer?\nChoices:\n(A) the left one\n(B) the right one",
        "If we compare the two, the bar on the right-hand side reaches further.",
        "one letter from A to B",
        "B",
    ),
    (
        "How many wheels do these bicycles have in all?",
        "I see three bicycles. Each of them has two wheels, which makes six.",
        "a whole number",
        "6",
    ),
    (
        "How long is the pencil? (Unit: cm)",
        "It starts at 1 cm and ends at 8.5 cm, so it is seven and a half centimetres long.",
        "a number with 1 decimal place",
        "7.5",
    ),
    (
        "Which animal is above the tree?\nChoices:\n(A) dog\n(B) bird\n(C) fly",
        "Without the picture nobody can say which animal that is.",
        "one letter from A to C",
        NO_ANSWER,
    ),
    (
        "In which years did the curve fall?",
        "The curve falls twice, first in 2003 and once more in 2007.",
        "a list in square brackets",
        "[2003, 2007]",
    ),
)
_FORMS = {"integer": "a whole number", "list": "a list in square brackets"}


def is_left_open(rule: Scorer, sample: Sample, answer: Answer) -> bool:
    """Whether there is a response in which the rule finds no answer."""
    if not answer.completion.strip() or answer.finish_reason == "choice":
        return False
    return rule(sample, answer).extracted is None


def request_of(sample: Sample, answer: Answer) -> Sample:
    """What a judge is asked about an answer.

    Its id is the sample's with a digest of question and response, so that what was said of another
    response is never taken for this one.
    """
    question = _request(_question(sample), answer.completion, _form(sample))
    return Sample(
        id=request_id(sample, answer),
        cluster_id=sample.cluster_id,
        subset=EXTRACTION,
        lead=(Message("user", _TASK),),
        shots=tuple(
            (Message("user", _request(*asked)), Message("assistant", found))
            for *asked, found in _DEMONSTRATIONS
        ),
        question=(Message("user", question),),
        choices=(),
        labels=(),
        gold="",
    )


def request_id(sample: Sample, answer: Answer) -> str:
    """Of the request about an answer to a sample."""
    text = json.dumps([_question(sample), _form(sample), answer.completion])
    return f"{sample.id} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def requests_digest(key: str) -> str:
    """Of all requests about a record of answers, which its key tells; sha256 in hexadecimal."""
    fixed = [_TASK, _DEMONSTRATIONS, _FORMS, _request("", "", ""), NO_ANSWER]
    return hashlib.sha256(json.dumps([key, *fixed]).encode()).hexdigest()


def extraction_profile(name: str) -> Profile:
    """How a judge is asked; nothing is scored by it."""
    return Profile(
        benchmark=EXTRACTION,
        name=name,
        upstream=mathvista("evaluation/extract_answer.py"),
        samples=lambda _: [],
        decoding=Decoding(MOST_TOKENS),
        uses_chat_template=True,
        scorers={},
        subsets=(EXTRACTION,),
        text_separator="\n\n",
    )


def judged_profile(profile: Profile, judge: str, said: Mapping[str, str]) -> Profile:
    """A profile under a name of its own, whose scorer asks what a judge read.

    Args:
        profile: Whose ``strict`` rule comes first, and reads what the judge wrote.
        judge: Its name.
        said: `request_id` -> what it wrote.
    """
    rule = profile.scorers["strict"]

    def score(sample: Sample, answer: Answer) -> Verdict:
        if not is_left_open(rule, sample, answer):
            return rule(sample, answer)
        identity = request_id(sample, answer)
        if identity not in said:
            raise DataError(
                f"The judge {judge} has not read the answer to {sample.id}, or another answer. "
                "Run `nan-merge rescore` with --judge again."
            )
        found = short_answer(said[identity])
        return (
            Verdict(None, False) if not found else rule(sample, replace(answer, completion=found))
        )

    return replace(profile, name=f"{profile.name}-judge:{judge}", scorers={"strict": score})


def short_answer(text: str) -> str:
    """The answer that a judge wrote down: its first line; "" if it says that there is none.

    Nothing is read behind "no answer": a number there, as in "No answer in response 2", is none.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = line.removeprefix("Final answer:").strip()
    says_none = re.match(rf"{NO_ANSWER}\b", line.lstrip(" .\"'").lower())
    return "" if says_none else line


@dataclass(frozen=True)
class Readings:
    """What a judge made of the answers to a benchmark.

    Attributes:
        num_open: Answers that the rule leaves open.
        num_found: In so many of these the judge found an answer.
        num_elsewhere: So many of the found ones are not in the response as they stand: they are
            in other words there, or the judge made them up.
    """

    num_open: int
    num_found: int
    num_elsewhere: int


def count_readings(
    rule: Scorer, pairs: Sequence[tuple[Sample, Answer]], said: Mapping[str, str]
) -> Readings:
    """Count what a judge wrote about answers; for arguments see `judged_profile`."""
    left = [(sample, answer) for sample, answer in pairs if is_left_open(rule, sample, answer)]
    found = [
        (text, answer.completion)
        for sample, answer in left
        if (text := short_answer(said.get(request_id(sample, answer), "")))
        and rule(sample, replace(answer, completion=text)).extracted is not None
    ]
    elsewhere = [text for text, response in found if not _holds(response, text)]
    return Readings(len(left), len(found), len(elsewhere))


def _holds(response: str, text: str) -> bool:
    pattern = rf"(?<!\w){re.escape(text.rstrip('.').casefold())}(?!\w)"
    return re.search(pattern, response.casefold()) is not None


def _request(question: str, response: str, form: str) -> str:
    return (
        f"Question:\n{question}\n\nResponse:\n{response.strip()}\n\n"
        f"Write the final answer of this response alone, as {form}.\nFinal answer:"
    )


def _form(sample: Sample) -> str:
    if sample.answer_format.startswith("float:"):
        digits = sample.answer_format.partition(":")[2]
        return f"a number with {digits} decimal place{'s' * (digits != '1')}"
    if sample.answer_format in _FORMS:
        return _FORMS[sample.answer_format]
    return f"one letter from {sample.labels[0]} to {sample.labels[-1]}"


def _question(sample: Sample) -> str:
    pieces: tuple[Piece, ...] = (sample.lead, sample.question)
    text = "\n".join(
        piece if isinstance(piece, str) else "\n".join(each.content for each in piece)
        for piece in pieces
        if piece
    )
    # MathVista's hint shows numbers as examples, which a weak judge would write down.
    return text.partition("\nHint: Please answer")[0]
