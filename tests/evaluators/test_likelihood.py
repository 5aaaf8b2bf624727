"""Choices compared by one request, and by one request each."""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluators.answers import Answer
from evaluators.backends.transformers_language import open_transformers
from evaluators.likelihood import compare_choices, render_choices
from evaluators.rendering import Wording, load_tokenizer
from evaluators.samples import Sample
from nan_merge.errors import EvaluationError
from tests.language_checkpoints import HAS_SMOLLM2, make_tiny_llama, make_tiny_tokenizer, smollm2

pytest.importorskip("transformers", reason="transformers is not installed (requirements/peers.txt)")

Row = Sequence[str]
TEXT = Wording(uses_chat_template=False)
SUBJECTS = (
    "abstract_algebra",
    "college_physics",
    "global_facts",
    "machine_learning",
    "us_foreign_policy",
)
DATA = os.environ.get("NAN_MERGE_DATA")
QUESTIONS = (
    ("How many legs has a spider?", "six", "eight", "ten", "none", "B"),
    ("What is 7 times 6?", "42", "36", "48", "13", "A"),
    ("Which of these is a metal?", "oxygen", "helium", "iron", "neon", "C"),
    ("Which planet is nearest to the sun?", "Mars", "Venus", "Earth", "Mercury", "D"),
    ("Who wrote Hamlet?", "Dante", "Shakespeare", "Goethe", "Homer", "B"),
    ("What does a barometer measure?", "heat", "mass", "light", "pressure", "D"),
)


def item(row: Row, answer: str) -> str:
    options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))
    return f"{row[0]}{options}\nAnswer:{answer}"


def ask(
    subject: str, shots: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]
) -> list[Sample]:
    lead = f"The following are multiple choice questions (with answers) about  {subject}.\n\n"
    solved = tuple(item(row, f" {row[5]}\n\n") for row in shots)
    return [
        Sample(
            id=f"{subject}/{number}",
            cluster_id=f"{subject}/{number}",
            subset=subject,
            lead=lead,
            shots=solved,
            question=item(row, ""),
            choices=(" A", " B", " C", " D"),
            labels=("A", "B", "C", "D"),
            gold=row[5],
        )
        for number, row in enumerate(rows)
    ]


def mmlu(subject: str) -> list[Sample]:
    assert DATA is not None
    rows = {}
    for split in ("dev", "test"):
        path = Path(DATA) / "mmlu" / split / f"{subject}_{split}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            rows[split] = list(csv.reader(file))
    return ask(subject, rows["dev"], rows["test"])


def choice(answer: Answer) -> int:
    values = [-math.inf if value is None else value for value in answer.log_probabilities]
    return values.index(max(values))


def assert_both_ways_agree(model: Any, tokenizer: Any, samples: Sequence[Sample]) -> None:
    prompts = [render_choices(tokenizer, sample, TEXT, model.max_length) for sample in samples]
    assert all(prompt.is_one_request for prompt in prompts)
    one = compare_choices(model, prompts)
    several = compare_choices(model, prompts, by_one_request=False)
    for mine, other in zip(one, several, strict=True):
        assert mine.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
        assert choice(mine) == choice(other), mine.sample_id


def test_both_ways_choose_alike_on_built_in_questions(tmp_path: Path):
    folder = make_tiny_llama(tmp_path)
    model = open_transformers(folder, dtype="float32", device="cpu")
    samples = ask("general knowledge", QUESTIONS[:3], QUESTIONS)
    assert_both_ways_agree(model, load_tokenizer(folder), samples)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(DATA is None, reason="NAN_MERGE_DATA does not name the folder of real MMLU")
@pytest.mark.skipif(
    not HAS_SMOLLM2, reason="SmolLM2-135M is not installed (requirements/peers.txt)"
)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_both_ways_choose_alike_on_every_sample_of_a_subject(subject: str):
    model = open_transformers(smollm2(), dtype="float32")
    samples = mmlu(subject)
    assert len(samples) >= 100
    assert_both_ways_agree(model, load_tokenizer(smollm2()), samples)


class Recorder:
    """A model that knows the log-probability of every token by heart and counts requests."""

    max_length = 60

    def __init__(self, log_probability: float = -1.0) -> None:
        self.log_probability = log_probability
        self.one: list[tuple[tuple[int, ...], list[int]]] = []
        self.several: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def next_token_log_probabilities(self, prompts: Any, token_ids: Any) -> list[list[float]]:
        self.one += zip(prompts, token_ids, strict=True)
        return [[self.log_probability - token for token in ids] for ids in token_ids]

    def log_likelihoods(self, prompts: Any, continuations: Any) -> list[float]:
        self.several += zip(prompts, continuations, strict=True)
        return [float(-len(each)) for each in continuations]


def with_choices(choices: tuple[str, ...], question: str = "fox: ") -> Sample:
    return Sample("s/0", "s/0", "s", "", ("one ", "two "), question, choices, choices, "A")


def test_choices_of_one_token_take_one_request():
    tokenizer, model = make_tiny_tokenizer(), Recorder()
    prompt = render_choices(tokenizer, with_choices(("X", "Y", "Z")), TEXT, 60)
    (answer,) = compare_choices(model, [prompt])
    ((asked, tokens),) = model.one
    assert not model.several
    assert tokenizer.decode(asked) == "<s>one two fox: "
    assert tokenizer.convert_ids_to_tokens(tokens) == ["X", "Y", "Z"]
    assert answer.log_probabilities == tuple(-1.0 - token for token in tokens)
    assert answer.finish_reason == "choice" and answer.num_prompt_tokens == len(asked)


def test_choices_of_several_tokens_take_one_request_each():
    model = Recorder()
    prompt = render_choices(make_tiny_tokenizer(), with_choices(("XY", "XYZ", "Z")), TEXT, 60)
    (answer,) = compare_choices(model, [prompt])
    assert not model.one
    assert answer.log_probabilities == (-2.0, -3.0, -1.0)


def test_a_choice_that_begins_another_keeps_a_token_of_its_own():
    tokenizer, model = make_tiny_tokenizer(), Recorder()
    compare_choices(model, [render_choices(tokenizer, with_choices(("X", "XY")), TEXT, 60)])
    assert [tokenizer.decode(ending) for _, ending in model.several] == ["X", "XY"]


def test_a_tokenizer_that_joins_prompt_and_choice_is_followed():
    # " quick" is one token of this tokenizer, so the end of the prompt belongs to one choice.
    tokenizer, model = make_tiny_tokenizer(), Recorder()
    prompt = render_choices(tokenizer, with_choices(("ick", "X"), "fox qu"), TEXT, 60)
    compare_choices(model, [prompt])
    shared = tokenizer.decode(prompt.prompt.token_ids)
    assert [shared + tokenizer.decode(ending) for ending in prompt.endings] == [
        "<s>one two fox quick",
        "<s>one two fox quX",
    ]
    assert shared == "<s>one two fox"


def test_log_probabilities_that_are_not_numbers_are_none():
    prompt = render_choices(make_tiny_tokenizer(), with_choices(("X", "Y")), TEXT, 60)
    (answer,) = compare_choices(Recorder(math.nan), [prompt])
    assert answer.log_probabilities == (None, None)
    assert answer.finish_reason == "choice" and answer.is_missing


def test_shots_are_dropped_and_a_prompt_that_is_still_too_long_is_not_asked():
    tokenizer, model = make_tiny_tokenizer(), Recorder()
    whole = render_choices(tokenizer, with_choices(("X", "Y")), TEXT, 60)
    shorter = render_choices(tokenizer, with_choices(("X", "Y")), TEXT, whole.longest - 1)
    assert (shorter.prompt.text, shorter.prompt.num_dropped_shots) == ("one fox: ", 1)
    model.max_length = 2
    (answer,) = compare_choices(
        model, [render_choices(tokenizer, with_choices(("X", "Y")), TEXT, 2)]
    )
    assert answer.log_probabilities == (None, None)
    assert (answer.num_dropped_shots, model.one) == (2, [])
    assert answer.finish_reason == "length" and answer.is_missing


def test_choices_without_a_prompt_cannot_be_compared():
    tokenizer = make_tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # nothing comes before the text
    sample = Sample("s/0", "s/0", "s", "", (), "", ("X", "Y"), ("X", "Y"), "X")
    with pytest.raises(EvaluationError, match="Sample s/0: its choices share no token"):
        render_choices(tokenizer, sample, TEXT, 60)
