"""Answers to questions about pictures: upstream's rules to the letter, and ours that abstain."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.answers import Answer
from evaluators.benchmarks.mathvista import offline_verdict, prompt_of
from evaluators.benchmarks.picture_tables import PictureRow
from evaluators.benchmarks.wemath import measures, parse_options, read_samples
from evaluators.benchmarks.wemath_measures import Problem, dimension, four_dimensions
from evaluators.extraction_pictures import (
    chosen_label,
    gllava_option,
    stated_list,
    stated_value,
    vlmeval_option,
    wemath_option,
)
from evaluators.language_scores import Outcome
from evaluators.profiles import Verdict
from evaluators.samples import Sample
from nan_merge.errors import DataError
from tests.picture_folders import write_wemath

LABELS, OPTIONS = tuple("ABCD"), ("20°", "30°", "145°", "a green leaf")


@pytest.mark.parametrize(
    ("text", "ours", "vlmeval", "wemath", "gllava"),
    [
        ("B", "B", "B", "B", None),
        ("(B)", "B", "B", None, None),
        ("b", "B", None, None, None),  # VLMEvalKit knows no small letters
        ("B. 30°", "B", "B", "B", None),
        ("Answer:B", "B", "B", "B", "B"),
        ("The answer is B", "B", "B", None, None),
        ("So the angle is right. The answer is B.", "B", "B", None, "B"),
        ("the answer is (C).", "C", "C", None, "C"),
        ("<Thought process>: <<x>> <Answer>: <<B>>", "B", None, "B", None),
        ("**Answer**: C", "C", "C", None, None),
        ("Answer: Both", None, None, "B", None),  # We-Math takes the first letter of any word
        ("Option B because A is wrong", None, None, None, None),
        ("The answer is B because A is wrong", "B", None, None, None),
        (r"Then \boxed{C}", "C", "C", None, None),
        ("A green leaf is shown", "D", "D", "A", None),
        ("The answer is A green leaf", "D", "A", None, None),
        ("It is 145°.", "C", "C", None, None),
        ("It is 1145°.", None, "C", None, None),  # VLMEvalKit looks inside numbers
        ("20° or 30°", None, None, None, None),
        ("The answer is E", None, None, None, None),  # no such option
        ("", None, None, None, None),
        ("no idea", None, None, None, None),
    ],
)
def test_labels_that_are_found(text, ours, vlmeval, wemath, gllava):
    assert chosen_label(text, LABELS, OPTIONS) == ours
    assert vlmeval_option(text, LABELS, OPTIONS) == vlmeval
    assert wemath_option(text, LABELS, OPTIONS) == wemath
    assert gllava_option(text, LABELS, OPTIONS) == gllava


def test_options_that_are_single_letters_are_not_confused_with_labels():
    options = ("c", "D", "b", "a")
    assert chosen_label("c", LABELS, options) is None  # label C, or option A's text?
    assert chosen_label("C", LABELS, options) == "C"
    assert chosen_label("The answer is (D)", LABELS, options) == "D"
    assert chosen_label("it is the part called b", LABELS, options) is None


def test_more_than_eight_options():
    labels = tuple("ABCDEFGHIJ")
    options = tuple(f"option {number}" for number in range(10))
    assert chosen_label("The answer is (J)", labels, options) == "J"
    assert chosen_label("(K)", labels, options) is None


@pytest.mark.parametrize(
    ("text", "answer_format", "expected"),
    [
        ("The answer is 1,234.", "integer", "1234"),
        ("The answer is 7.0", "integer", "7"),
        ("The answer is 7.5", "integer", None),
        ("First 3, then 4", "integer", "4"),
        (r"\boxed{12} of 20", "integer", "12"),
        ("about 12%", "integer", "12"),
        ("20-2", "integer", "2"),
        ("it is -3", "integer", "-3"),
        ("1.25 cm", "float:1", "1.2"),
        ("1.5", "float:2", "1.5"),
        ("none", "integer", None),
        ("9" * 400, "integer", None),  # no float holds it
    ],
)
def test_numbers_that_are_stated(text, answer_format, expected):
    assert stated_value(text, answer_format) == expected


def test_lists_that_are_stated():
    assert stated_list("first [0], then [1,2.5]") == "[1, 2.5]"
    assert stated_list("[a, b]") is None
    assert stated_list("1, 2") is None


def _sample(gold: str, answer_format: str, options: tuple[str, ...] = ()) -> Sample:
    return Sample(
        "x", "x", "x", (), (), (), (), tuple("ABCDEFGH"[: len(options)]), gold,
        options=options, answer_format=answer_format,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "answer_format", "options", "text", "verdict"),
    [
        ("145°", "choice", OPTIONS, "The answer is C", Verdict("145°", True)),
        ("145°", "choice", OPTIONS, "The answer is B", Verdict("30°", False)),
        # The authors' own rule takes the nearest text where there is none.
        ("145°", "choice", OPTIONS, "144°", Verdict(None, False)),
        ("7", "integer", (), "7.0", Verdict("7", True)),
        ("1.5", "float:2", (), "1.504", Verdict("1.5", True)),
        ("[1, 2]", "list", (), "It is [1,2].", Verdict("[1, 2]", True)),
    ],
)
def test_mathvista_without_a_judge(gold, answer_format, options, text, verdict):
    sample = _sample(gold, answer_format, options)
    assert offline_verdict(sample, Answer("x", "", text, "stop")) == verdict


def test_mathvista_is_asked_in_its_authors_words():
    assert prompt_of("How long?", "cm", (), "float:1") == (
        "Question: How long? (Unit: cm)\n"
        "Hint: Please answer the question requiring a floating-point number with one decimal place "
        "and provide the final value, e.g., 1.2, 1.3, 1.4, at the end.\nSolution:"
    )
    assert prompt_of("Which?", "", ("x", "y"), "choice") == (
        "Question: Which?\nChoices:\n(A) x\n(B) y\nHint: Please answer the question and provide "
        "the correct option letter, e.g., A, B, C, D, at the end.\nSolution:"
    )


def test_options_of_wemath_are_parsed_as_far_as_they_are_well_formed():
    assert parse_options("A. 1 cm; B. 2 cm;C.No correct answer") == (
        "1 cm", "2 cm", "No correct answer")  # fmt: skip
    assert parse_options("A. Shape B; B. Shape ;C.;") == ("Shape B", "Shape", "")


problems = st.lists(
    st.integers(2, 3).flatmap(
        lambda steps: st.tuples(
            st.booleans(), st.lists(st.booleans(), min_size=steps, max_size=steps).map(tuple)
        )
    ),
    min_size=1,
    max_size=30,
).map(lambda found: [Problem(str(n), whole, steps) for n, (whole, steps) in enumerate(found)])


@given(problems)
def test_the_four_dimensions_divide_the_problems(problems):
    scores = four_dimensions(problems)
    total = len(problems)
    for kind in ("strict", "loose"):
        counts = [dimension(each, strict=kind == "strict") for each in problems]
        ik, ig, cm, rm = (counts.count(name) for name in ("IK", "IG", "CM", "RM"))
        assert ik + ig + cm + rm == total
        assert scores["IK"].value * total == pytest.approx(ik)
        assert scores["IG"].value * total == pytest.approx(ig)
        assert scores[f"CM ({kind})"].value * total == pytest.approx(cm)
        # The authors' own form of the score.
        expected = (total - 0.5 * ig - rm - ik) / total
        assert scores[f"score ({kind})"].value == pytest.approx(expected)
        if cm + rm:
            assert scores[f"RM ({kind})"].value == pytest.approx(rm / (cm + rm))
    assert scores["score (loose)"].value >= scores["score (strict)"].value


def test_every_kind_of_problem_is_what_the_authors_call_it():
    kinds = {
        (whole, steps): (
            dimension(Problem("x", whole, steps), strict=True),
            dimension(Problem("x", whole, steps), strict=False),
        )
        for whole in (True, False)
        for steps in itertools.product((True, False), repeat=2)
    }
    assert kinds[True, (True, True)] == ("CM", "CM")
    assert kinds[True, (True, False)] == ("RM", "CM")
    assert kinds[True, (False, False)] == ("RM", "RM")
    assert kinds[False, (True, True)] == ("IG", "IG")
    assert kinds[False, (True, False)] == kinds[False, (False, False)] == ("IK", "IK")


def test_measures_of_wemath_leave_out_problems_that_were_not_asked_whole():
    def outcome(problem: str, key: str, right: bool) -> Outcome:
        sample = Sample(
            f"{problem}/{key}", problem, "wemath", (), (), (), (), tuple("AB"), "A", tags=(key,)
        )
        return Outcome(sample, Answer(sample.id, "", "", "stop"), Verdict("A", right))

    outcomes = [
        outcome("1", "2steps_1", True),
        outcome("1", "2steps_2", True),
        outcome("1", "2steps_multi", False),
        outcome("2", "3steps_1", False),  # its whole was not asked
    ]
    found = measures(outcomes)
    assert found["IG"].value == 1 and found["IG"].num_samples == 1
    assert found["score (strict)"].value == 0.5
    assert found["S1, one step"].value == pytest.approx(2 / 3)
    assert found["S2, two steps"].value == 0
    assert "S3, three steps" not in found


def test_a_domain_of_wemath_is_the_mean_over_its_concepts_of_one_step(tmp_path):
    write_wemath(tmp_path, 2)  # seven questions about one concept
    nodes = [
        {"full node": "Plane Figures_Understanding of Plane Figures_Polygons_Squares"},
        {"full node": "Plane Figures_Understanding of Plane Figures_Polygons_Circles"},
        {"full node": "Measurement_Angles and Length_Rulers"},
    ]
    path = tmp_path / "testmini.json"
    records = json.loads(path.read_text())
    for record, concept in zip(records, ["Squares", "Circles", "x", *["Squares"] * 4], strict=True):
        record["knowledge concept"] = concept
    path.write_text(json.dumps(records))
    assert all(len(sample.tags) == 1 for sample in read_samples(tmp_path))
    (tmp_path / "knowledge_structure_nodes.json").write_text(json.dumps(nodes))
    samples = read_samples(tmp_path)
    right = ["2steps_2", "3steps_1", "3steps_multi"]
    found = measures(
        [
            Outcome(s, Answer(s.id, "", "", "stop"), Verdict("A", s.tags[0] in right))
            for s in samples
        ]
    )
    # Squares: one of four steps right; circles: one of one. Whole problems do not count.
    assert found["domain: Understanding of Plane Figures"].value == pytest.approx((1 / 4 + 1) / 2)
    assert found["domain: Understanding of Plane Figures"].num_samples == 5
    assert not any("Angles" in name for name in found)
    (tmp_path / "knowledge_structure_nodes.json").write_text('[{"node": 1}]')
    with pytest.raises(DataError, match=r"nodes\.json: expected a list .*remove it"):
        read_samples(tmp_path)


def test_a_row_without_text_says_which_column():
    row = PictureRow("f:1", {"question": " "}, ())
    with pytest.raises(Exception, match=r"f:1: question is missing or blank, expected text"):
        row.text("question")
