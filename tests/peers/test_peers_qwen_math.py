"""Our GSM8K profiles of Qwen2.5-Math against its evaluation toolkit itself.

The toolkit is no package and pins what others cannot share, so it runs from a checkout, in an
environment of its own:

    git clone https://github.com/QwenLM/Qwen2.5-Math && git -C Qwen2.5-Math checkout a45202b
    pip install sympy==1.12 antlr4-python3-runtime==4.11.1 word2number regex numpy pytest hypothesis
    NAN_MERGE_QWEN_MATH=Qwen2.5-Math/evaluation pytest tests/peers/test_peers_qwen_math.py

The last test also wants NAN_MERGE_DATA, a folder with gsm8k/test.jsonl.
"""

import importlib
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluators.benchmarks.gsm8k import PROFILES
from evaluators.extraction_qwen_math import qwen_math_answer, qwen_math_equal
from evaluators.qwen_math_words import number_from_words
from tests.extraction_fixtures import NUMBERS

TOOLKIT = os.environ.get("NAN_MERGE_QWEN_MATH", "")
pytestmark = [
    pytest.mark.skipif(not TOOLKIT, reason="NAN_MERGE_QWEN_MATH names no checkout of the toolkit"),
    pytest.mark.filterwarnings("ignore"),
]
STATEMENTS = [
    *("The answer is {}.", "the answer is: {}", "final answer is {} hours", "#### {}", "**{}**"),
    *(
        "\\boxed{{{}}}",
        "$\\boxed{{{}}}$ dollars.",
        "答案是{}\n\n5",
        "so {}",
        "{} eggs",
        "one of {}",
    ),
    *("The answer is {}, as shown.", "The answer is **{}**.", "The answer is {} (see above)"),
    *("The answer is {}\nLet me check.", "The final answer is ${}$. I hope it is correct."),
]
NUMERALS = [
    *("18", "-18", "1,000", "1000", "18.00", "0.18", ".5", "10001", "$18", "\\$18", "18%", "1/2"),
    *(
        "\\frac{36}{2}",
        "\\frac12",
        "eighteen",
        "two hundred five",
        "18\\text{ dollars}",
        "18 miles",
    ),
    *(
        "007",
        "20-2",
        "3*6",
        "3 \\times 6 = 18",
        "x=18",
        "n = 18",
        "(18)",
        "1{,}000",
        "one",
        "point",
    ),
]


@pytest.fixture(scope="module")
def toolkit() -> Any:
    sys.path[:0] = [TOOLKIT, str(Path(TOOLKIT) / "latex2sympy")]
    parts = {name: importlib.import_module(name) for name in ("parser", "grader", "utils")}
    return SimpleNamespace(**parts)


def within_a_second(function: Callable[..., bool], *arguments: object) -> bool | None:
    """None if it takes longer: the toolkit gives up too, and sympy raises powers for hours."""

    def give_up(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(1)
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        return None
    finally:
        signal.alarm(0)


def completions() -> list[str]:
    draw = random.Random(0)
    drawn: list[str] = []
    for _ in range(600):
        number_of_statements = draw.randint(1, 2)
        statements = [
            draw.choice(STATEMENTS).format(draw.choice(NUMERALS))
            for _ in range(number_of_statements)
        ]
        drawn.append(draw.choice(["\n", " ", "\n\n"]).join(statements))
    return [case.completion for case in NUMBERS] + drawn


def test_number_words_are_those_of_the_toolkit(toolkit: Any):
    draw = random.Random(0)
    words = ["one", "two", "ten", "twelve", "fifty", "hundred", "thousand", "million", "billion"]
    words += ["point", "and", "18", "dollars"]
    for _ in range(20_000):
        text = draw.choice([" ", "-"]).join(draw.choices(words, k=draw.randint(1, 7)))
        assert number_from_words(text) == toolkit.parser.convert_word_number(text), text


def test_answers_and_verdicts_are_those_of_the_toolkit(toolkit: Any):
    differing: list[str] = []
    num_right = 0
    for text in completions():
        answer, _ = toolkit.parser.run_execute(None, text.strip(), "cot", "gsm8k")
        assert qwen_math_answer(text) == (answer or None), text
        if not answer:
            continue
        for gold in ("18", "1,000"):
            _, reference = toolkit.parser.parse_ground_truth({"answer": f"so#### {gold}"}, "gsm8k")
            right = within_a_second(toolkit.grader.math_equal, answer, reference)
            num_right += bool(right)
            if right is not None and qwen_math_equal(answer, gold) != right:
                differing.append(f"{answer} = {gold}")
    # What only sympy can read is not read here; it must stay rare.
    print(f"{len(differing)} verdicts differ, {num_right} are right: {differing[:20]}")
    assert num_right > 200
    assert len(differing) <= 0.01 * num_right


@pytest.mark.parametrize(
    ("name", "prompt_type", "num_shots"),
    [
        ("qwen25-math-cot", "qwen25-math-cot", 0),
        ("cot", "cot", 8),
        ("qwen25-wizard-zs", "wizard_zs", 0),
    ],
)
def test_prompts_are_those_of_the_toolkit(
    toolkit: Any, name: str, prompt_type: str, num_shots: int
):
    folder = os.environ.get("NAN_MERGE_DATA", "")
    if not folder:
        pytest.skip("NAN_MERGE_DATA names no folder of benchmark data")
    profile = next(each for each in PROFILES if each.name == name)
    samples = profile.samples(Path(folder) / "gsm8k")
    rows = toolkit.utils.load_jsonl(Path(folder) / "gsm8k" / "test.jsonl")
    arguments = SimpleNamespace(prompt_type=prompt_type, num_shots=num_shots, adapt_few_shot=False)
    for sample, row in zip(samples, rows, strict=True):
        row["question"] = toolkit.parser.parse_question(row, "gsm8k")
        expected = toolkit.utils.construct_prompt(row, "gsm8k", arguments)
        assert isinstance(sample.question, str)
        ours = "".join(text for text in sample.shots if isinstance(text, str)) + sample.question
        assert ours == expected, sample.id
    assert len(samples) == 1_319
