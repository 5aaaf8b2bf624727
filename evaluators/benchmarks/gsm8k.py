"""GSM8K (Cobbe et al., arXiv 2110.14168): 1,319 word problems whose answer is a whole number.

Layout of the data: test.jsonl, an object a line with "question" and "answer"; the number stands
behind "####" at the end of the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from evaluators.benchmarks.files import read_json_lines, text_field
from evaluators.benchmarks.upstreams import USER_TURN_END, opencompass, qwen_math
from evaluators.extraction_numbers import (
    numbers_equal,
    opencompass_number,
    opencompass_number_equal,
    stated_number,
)
from evaluators.extraction_qwen_math import qwen_math_answer, qwen_math_equal
from evaluators.profiles import Decoding, Profile, Scorer, ScorerName
from evaluators.samples import Message, Piece, Sample
from evaluators.scorers import written_text
from nan_merge.errors import DataError

SUBSET = "gsm8k"
Ask = Callable[[str], tuple[Piece, tuple[Piece, ...]]]


@lru_cache
def solved_examples(name: str) -> tuple[tuple[str, str], ...]:
    """Question and solution of the examples that a protocol shows: "oc" or "cot".

    Where they come from stands in the file.
    """
    path = Path(__file__).with_name("gsm8k_shots.json")
    examples = json.loads(path.read_text(encoding="utf-8"))[name]
    return tuple((each["question"], each["answer"]) for each in examples)


def read_problems(path: Path) -> list[tuple[str, str]]:
    """Questions and gold numbers of a file, numbers as they are written there ("1,000").

    Raises:
        DataError: If the file is missing or damaged, or an answer has no number behind "####".
    """
    problems: list[tuple[str, str]] = []
    for place, record in read_json_lines(path):
        question = text_field(place, record, "question")
        parts = text_field(place, record, "answer").split("#### ")
        gold = parts[-1].strip()
        if len(parts) != 2 or not re.fullmatch(r"-?[\d,]*\d", gold):
            raise DataError(f"{place}: the answer does not end in '#### ' and a whole number")
        problems.append((question, gold))
    return problems


def _reader(ask: Ask) -> Callable[[Path], list[Sample]]:
    def read(folder: Path) -> list[Sample]:
        first: dict[str, int] = {}
        samples: list[Sample] = []
        for number, (text, gold) in enumerate(read_problems(folder / "test.jsonl")):
            question, shots = ask(text)
            cluster = first.setdefault(text, number)
            samples.append(
                Sample(
                    id=f"{SUBSET}/{number}",
                    cluster_id=f"{SUBSET}/{cluster}",
                    subset=SUBSET,
                    lead="" if isinstance(question, str) else (),
                    shots=shots,
                    question=question,
                    choices=(),
                    labels=(),
                    gold=gold,
                )
            )
        return samples

    return read


def _ask_as_opencompass(text: str) -> tuple[Piece, tuple[Piece, ...]]:
    def turn(question: str) -> Message:
        return Message("user", f"Question: {question}\nLet's think step by step\nAnswer:")

    shots = ((turn(asked), Message("assistant", f"{solution}\n")) for asked, solution in _OC_SHOTS)
    return (turn(text),), tuple(shots)


def _ask_as_cot(text: str) -> tuple[Piece, tuple[Piece, ...]]:
    shots = (f"Question: {asked}\nAnswer: {solution}\n\n\n" for asked, solution in _COT_SHOTS)
    return f"Question: {text.strip()}\nAnswer:", tuple(shots)


def _ask_as_qwen(text: str) -> tuple[Piece, tuple[Piece, ...]]:
    # The turns of a chat are part of the protocol: a model is asked in these words whatever its
    # own template.
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{text.strip()}<|im_end|>\n"
    return f"{turns}<|im_start|>assistant\n", ()


def _ask_as_wizard(text: str) -> tuple[Piece, tuple[Piece, ...]]:
    question = f"### Instruction:\n{text.strip()}\n\n### Response: Let's think step by step."
    return question, ()


_OC_SHOTS, _COT_SHOTS = solved_examples("oc"), solved_examples("cot")
_STRICT: Scorer = written_text(stated_number, numbers_equal)
_QWEN_SCORERS: dict[ScorerName, Scorer] = {
    "compat": written_text(qwen_math_answer, qwen_math_equal),
    "strict": _STRICT,
}
_QWEN_STOP = ("</s>", "<|im_end|>", "<|endoftext|>")


def _qwen_profile(name: str, ask: Ask, stop: tuple[str, ...] = ()) -> Profile:
    return Profile(
        benchmark="gsm8k",
        name=name,
        upstream=qwen_math("evaluation/utils.py"),
        samples=_reader(ask),
        decoding=Decoding(2048, (*_QWEN_STOP, *stop)),
        uses_chat_template=False,
        scorers=_QWEN_SCORERS,
        subsets=(SUBSET,),
    )


PROFILES = (
    _qwen_profile("qwen25-math-cot", _ask_as_qwen),
    _qwen_profile("cot", _ask_as_cot, ("\n\nQuestion:",)),
    _qwen_profile("qwen25-wizard-zs", _ask_as_wizard, ("Instruction", "Response")),
    Profile(
        benchmark="gsm8k",
        name="oc",
        upstream=opencompass("opencompass/configs/datasets/gsm8k/gsm8k_gen_1d7fe4.py"),
        samples=_reader(_ask_as_opencompass),
        decoding=Decoding(512),
        uses_chat_template=True,
        user_turn_end=USER_TURN_END,
        scorers={
            "compat": written_text(opencompass_number, opencompass_number_equal),
            "strict": _STRICT,
        },
        subsets=(SUBSET,),
    ),
)
