"""Every extraction on completions of every kind: upstream's mistakes in compat, none in strict."""

import pytest

from evaluators.extraction import answer_pattern, first_capital, first_option, stated_label
from evaluators.extraction_bbh import (
    opencompass_choice,
    opencompass_choice_equal,
    opencompass_text,
    opencompass_text_equal,
    stated_choice,
    stated_choice_equal,
    stated_text,
    stated_text_equal,
)
from evaluators.extraction_numbers import (
    numbers_equal,
    opencompass_number,
    opencompass_number_equal,
    stated_number,
)
from evaluators.extraction_qwen_math import qwen_math_answer, qwen_math_equal
from tests.extraction_fixtures import (
    BBH_CHOICES,
    BBH_TEXTS,
    LETTERS,
    NUMBERS,
    BbhAnswer,
    Letter,
    Number,
)


@pytest.mark.parametrize("case", LETTERS, ids=lambda case: repr(case.completion))
def test_letters(case: Letter):
    assert first_option(case.completion, "ABCD") == case.first_option
    assert first_capital(case.completion, "ABCD") == case.first_capital
    assert answer_pattern(case.completion, "ABCD") == case.answer_pattern
    assert stated_label(case.completion, "ABCD") == case.strict


@pytest.mark.parametrize("case", BBH_CHOICES, ids=lambda case: repr(case.completion))
def test_choices_of_bbh(case: BbhAnswer):
    found = opencompass_choice(case.completion)
    assert (found is not None and opencompass_choice_equal(found, case.gold)) == case.compat
    found = stated_choice(case.completion, "ABC")
    assert (found is not None and stated_choice_equal(found, case.gold)) == case.strict


@pytest.mark.parametrize("case", BBH_TEXTS, ids=lambda case: repr(case.completion))
def test_texts_of_bbh(case: BbhAnswer):
    found = opencompass_text(case.completion)
    assert (found is not None and opencompass_text_equal(found, case.gold)) == case.compat
    found = stated_text(case.completion)
    assert (found is not None and stated_text_equal(found, case.gold)) == case.strict


@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: repr(case.completion))
def test_numbers(case: Number):
    found = opencompass_number(case.completion)
    assert found == case.opencompass
    right = found is not None and opencompass_number_equal(found, case.gold)
    assert right == case.opencompass_right
    found = qwen_math_answer(case.completion)
    assert found == case.qwen
    assert (found is not None and qwen_math_equal(found, case.gold)) == case.qwen_right
    found = stated_number(case.completion)
    assert found == case.strict
    assert (found is not None and numbers_equal(found, case.gold)) == case.strict_right
