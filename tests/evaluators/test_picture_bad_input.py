"""Bad data about pictures, through the readers: an error that names the place, or an abstention."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluators.answers import Answer
from evaluators.benchmarks import PROFILES, ai2d, geoqa, mathvista, wemath
from evaluators.data_check import check_data
from evaluators.language_evaluation import (
    LanguageModelOptions,
    answer_shard,
    language_shards,
    open_language_model,
)
from evaluators.pictures import PictureSource, decode_picture, picture_digest, read_picture
from evaluators.profiles import Decoding
from evaluators.samples import Sample
from nan_merge.errors import DataError
from tests import picture_folders as made


def answered(sample: Sample, text: str) -> Answer:
    return Answer(sample.id, "", text, "stop", 1, num_tokens=1)


def change_json(folder: Path, number: int, **values: Any) -> None:
    path = folder / "testmini.json"
    content: Any = json.loads(path.read_text())
    rows = list(content.values()) if isinstance(content, dict) else content
    rows[number].update(values)
    path.write_text(json.dumps(content))


TOO_LARGE = r"the image (is far too large|has 40,000 x 40,000 pixels)"


def test_a_bomb_in_a_file_or_in_parquet_is_refused_before_it_is_decoded(tmp_path):
    made.write_mathvista(tmp_path / "files")
    made.write_picture(tmp_path / "files", "images/3.png", made.bomb())
    with pytest.raises(DataError, match=rf"row 3: {TOO_LARGE}"):
        mathvista.read_samples(tmp_path / "files")
    (problem, *_) = check_data("mathvista", tmp_path / "files").all_problems()
    assert "row 3" in problem
    row = {"question": "What?", "options": ["x", "y"], "answer": "0",
           "image": {"bytes": made.bomb(), "path": None}}  # fmt: skip
    made.write_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", [row])
    with pytest.raises(DataError, match=rf"\.parquet: row 1: {TOO_LARGE}"):
        ai2d.read_samples(tmp_path / "hub")


def test_parquet_without_a_picture_names_its_row(tmp_path):
    picture = {"bytes": made.encoded(made.draw("red")), "path": None}
    rows = [
        {"question": "What?", "options": ["x", "y"], "answer": "0", "image": image}
        for image in (picture, {"bytes": None, "path": "gone.png"})
    ]
    made.write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    with pytest.raises(DataError, match=r"row 2: the image is not in the file"):
        ai2d.read_samples(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_cut_short_is_never_shown_in_part(kind):
    """Its header is whole, so that only decoding finds it out."""
    whole = made.encoded(made.draw("red", 5).resize((300, 300)), kind)
    assert decode_picture("here", whole).size == (300, 300)
    for share in (0.5, 0.9):
        with pytest.raises(DataError, match=r"here: the image is (damaged|cut short)"):
            decode_picture("here", whole[: int(len(whole) * share)])


def test_a_picture_that_is_gone_when_it_is_shown_is_named(tmp_path):
    content = made.encoded(made.draw("red"))
    made.write_picture(tmp_path, "1.png", content)
    source = PictureSource(str(tmp_path / "1.png"), picture_digest(content))
    assert read_picture(source) == content
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png is missing"):
        read_picture(source)


def test_options_that_are_single_letters_are_told_from_labels(tmp_path):
    """AI2D masks the labels of diagrams by letters, so that "B" may be option A's text."""
    rows = made.ai2d_rows(2)
    rows[0].update(dict(zip("ABCD", ("B", "A", "d", "c"), strict=True)), answer="C")
    made.write_tsv(tmp_path / "AI2D_TEST.tsv", rows)
    sample = ai2d.read_samples(tmp_path)[0]
    assert sample.options == ("B", "A", "d", "c")
    assert "A. B\nB. A\nC. d\nD. c\n" in sample.question[0].content
    strict = PROFILES["ai2d", "llava"].scorers["strict"]
    assert strict(sample, answered(sample, "C")).is_correct
    assert strict(sample, answered(sample, "C. d")).is_correct
    # The text of an option, or its label? It counts as an abstention.
    assert strict(sample, answered(sample, "c")).extracted is None
    assert strict(sample, answered(sample, "it is the part called d")).extracted is None


def test_ten_options_are_asked_and_scored_by_their_letters(tmp_path):
    choices = [f"the {number}th" for number in range(10)]
    made.write_mathvista(tmp_path / "m")
    change_json(tmp_path / "m", 0, choices=choices, answer=choices[9])
    sample = mathvista.read_samples(tmp_path / "m")[0]
    assert "(J) the 9th\n" in sample.question[0].content
    strict = PROFILES["mathvista", "mathvista-offline-v1"].scorers["strict"]
    assert strict(sample, answered(sample, "The answer is (J)")).is_correct
    assert strict(sample, answered(sample, "The answer is (K)")).extracted is None

    rows = made.ai2d_rows(2)
    rows[0].update(dict(zip("ABCDEFGHIJ", choices, strict=True)), answer="I")
    made.write_tsv(tmp_path / "a" / "AI2D_TEST.tsv", rows)
    sample = ai2d.read_samples(tmp_path / "a")[0]
    assert (sample.gold, len(sample.labels)) == ("I", 10)
    for scorer in PROFILES["ai2d", "llava"].scorers.values():
        assert scorer(sample, answered(sample, "I")).is_correct


def test_more_options_than_letters_are_refused(tmp_path):
    made.write_mathvista(tmp_path)
    choices = [f"option {number}" for number in range(27)]
    change_json(tmp_path, 0, choices=choices, answer=choices[0])
    with pytest.raises(DataError, match=r"row 1: has 27 options, expected 2 to 26"):
        mathvista.read_samples(tmp_path)


def test_wemath_asks_a_malformed_option_string_as_it_stands(tmp_path):
    made.write_wemath(tmp_path, 1)
    change_json(tmp_path, 0, option="A 1, B 2, C 3, D 4", answer="D")
    sample = wemath.read_samples(tmp_path)[0]
    assert "\nOption: A 1, B 2, C 3, D 4\n" in sample.question[0].content
    assert sample.labels == tuple("ABCDE")
    compat = PROFILES["wemath", "wemath"].scorers["compat"]
    assert compat(sample, answered(sample, "<Answer>: <<D>>")).is_correct


def test_an_answer_that_is_no_letter_is_named_where_options_are_malformed(tmp_path):
    made.write_wemath(tmp_path, 1)
    change_json(tmp_path, 0, option="1, 2 or 3", answer="(D)")
    with pytest.raises(DataError, match=r"row 1: the answer is '\(D\)', expected a letter"):
        wemath.read_samples(tmp_path)


def test_a_question_of_geoqa_whose_choices_cannot_be_read_is_asked_as_it_stands(tmp_path):
    made.write_geoqa(tmp_path, 1)
    path = tmp_path / "test_questions.jsonl"
    path.write_text(path.read_text().replace("Choices: A. 1 B. 2 C. 3 D. 4", "One, or two?"))
    (sample,) = geoqa.read_samples(tmp_path)
    assert sample.question[0].content.startswith("How many squares, 0? One, or two?\n")
    assert sample.labels == tuple("ABCD")


def test_a_picture_cut_short_stops_the_evaluation_with_its_place(tmp_path):
    """Found by `data verify`; without it, when the picture is decoded for the model."""
    pytest.importorskip("transformers")
    from tests.vlm_checkpoints import make_tiny_llava

    made.write_mathvista(tmp_path / "data")
    whole = made.encoded(made.draw("red"))
    made.write_picture(tmp_path / "data", "images/2.png", whole[: len(whole) * 3 // 4])
    profile = replace(PROFILES["mathvista", "mathvista-offline-v1"], decoding=Decoding(2))
    (shard,) = language_shards(profile, profile.samples(tmp_path / "data"))
    folder = make_tiny_llava(tmp_path / "llava")
    options = LanguageModelOptions(backend="transformers", dtype="float32", device="cpu")
    opened = open_language_model(str(folder), options)
    try:
        with pytest.raises(DataError, match=r"images/2\.png: the image is damaged or cut short"):
            answer_shard(opened, shard)
    finally:
        opened.close()
