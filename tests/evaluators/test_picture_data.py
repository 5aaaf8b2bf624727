"""Data about pictures: every public layout gives the same questions; damage is named."""

import csv
import io
import json
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluators.benchmarks import ai2d, geoqa, mathvista, wemath
from evaluators.data_check import check_data
from evaluators.geoqa_convert import convert_geoqa
from evaluators.pickled_data import read_pickled_data
from evaluators.pictures import decode_picture, read_picture
from nan_merge.errors import DataError
from tests import picture_folders as made

READ = {
    "mathvista": mathvista.read_samples,
    "wemath": wemath.read_samples,
    "ai2d": ai2d.read_samples,
    "geoqa": geoqa.read_samples,
}


@pytest.mark.parametrize(
    ("benchmark", "writers"),
    [
        (
            "mathvista",
            [made.write_mathvista, made.write_mathvista_parquet, made.write_mathvista_tsv],
        ),
        ("ai2d", [made.write_ai2d, made.write_ai2d_parquet]),
    ],
)
def test_all_layouts_ask_the_same_and_show_the_same_pictures(tmp_path, benchmark, writers):
    found = []
    for number, write in enumerate(writers):
        write(tmp_path / str(number), 8)
        found.append(READ[benchmark](tmp_path / str(number)))
    first, *others = found
    assert len(first) == 8
    for other in others:
        assert [each.question for each in other] == [each.question for each in first]
        assert [each.gold for each in other] == [each.gold for each in first]
        assert [each.options for each in other] == [each.options for each in first]
        for one, two in zip(first, other, strict=True):
            pictures = [
                decode_picture("", read_picture(each.images[0])).tobytes() for each in (one, two)
            ]
            assert pictures[0] == pictures[1]


def test_wemath_clusters_are_problems_and_ai2ds_are_diagrams(tmp_path):
    made.write_wemath(tmp_path / "w")
    samples = wemath.read_samples(tmp_path / "w")
    assert [each.cluster_id for each in samples] == ["wemath/2steps-0"] * 3 + [
        "wemath/3steps-1"
    ] * 4
    assert samples[0].options == ("1", "2", "3", "4", "No correct answer")
    made.write_ai2d(tmp_path / "a", 4)
    clusters = [each.cluster_id for each in ai2d.read_samples(tmp_path / "a")]
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]


@pytest.mark.parametrize("write", [made.write_wemath_parquet, made.write_wemath_tsv])
def test_other_layouts_of_wemath_are_the_same_problems(tmp_path, write):
    made.write_wemath(tmp_path / "first")
    write(tmp_path / "other")
    first, other = (wemath.read_samples(tmp_path / name) for name in ("first", "other"))
    assert len(first) == len(other) == 7
    for one, two in zip(first, other, strict=True):
        for part in ("id", "cluster_id", "options", "gold", "tags"):
            assert getattr(one, part) == getattr(two, part)
        pictures = [read_picture(each.images[0]) for each in (one, two)]
        assert pictures[0] == pictures[1]


def test_both_layouts_of_geoqa(tmp_path):
    made.write_geoqa(tmp_path / "a")
    made.write_geoqa_tsv(tmp_path / "b")
    one, two = (geoqa.read_samples(tmp_path / name) for name in ("a", "b"))
    assert [each.gold for each in one] == [each.gold for each in two] == list("ABCD")
    assert one[0].options == two[0].options == ("1", "2", "3", "4")
    assert one[0].question[0].content.endswith('"Therefore, the answer is [OPTION]"')
    letter = geoqa.read_samples(tmp_path / "b", "letter")
    assert letter[0].question[0].content == (
        "How many squares, 0?\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\n"
        "Answer with the option's letter from the given choices directly."
    )


def _change(path: Path, row: int, column: str, value: str) -> None:
    csv.field_size_limit(1 << 24)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rows[row][column] = value
    made.write_tsv(path, rows)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", "!" * 100, r"AI2D_TEST\.tsv:4: the image is no base64"),
        ("image", "77", r"AI2D_TEST\.tsv:4: its image is that of index '77', and no row"),
        ("image", made.as_base64(b"no image" * 20), r":4: the image is damaged, or none of PNG"),
        (
            "image",
            made.as_base64(made.bomb()),
            r":4: the image (is far too large|has 40,000 x 40,000)",
        ),
        ("A", "", r":4: option A is blank"),
        ("answer", "E", r":4: the answer is 'E', expected a letter from A to D"),
        ("answer", "", r":4: answer is missing or blank"),
        ("index", "0", r":4: index '0' is there twice"),
        ("question", " ", r":4: question is missing or blank"),
    ],
)
def test_a_damaged_row_of_a_tsv_is_named(tmp_path, column, value, message):
    made.write_ai2d(tmp_path, 4)
    _change(tmp_path / "AI2D_TEST.tsv", 2, column, value)
    with pytest.raises(DataError, match=message):
        ai2d.read_samples(tmp_path)


def test_a_quoted_cell_with_line_ends_does_not_move_the_pictures(tmp_path):
    made.write_ai2d(tmp_path, 4)
    _change(tmp_path / "AI2D_TEST.tsv", 0, "question", 'two\nlines, "quoted"\tand a tab: ö')
    for sample in ai2d.read_samples(tmp_path):
        decode_picture("", read_picture(sample.images[0]))


def test_missing_and_cut_pictures_are_named(tmp_path):
    made.write_mathvista(tmp_path)
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(DataError, match=r"row 2: the image .*images/2\.png is missing"):
        mathvista.read_samples(tmp_path)
    made.write_picture(tmp_path, "images/2.png", made.encoded(made.draw("red"))[:90])
    report = check_data("mathvista", tmp_path)
    assert any("row 2: the image is damaged or cut short" in each for each in report.all_problems())


def test_a_picture_outside_the_folder_is_refused(tmp_path):
    made.write_mathvista(tmp_path / "data")
    made.write_picture(tmp_path, "secret.png", made.encoded(made.draw("red")))
    path = tmp_path / "data" / "testmini.json"
    records = json.loads(path.read_text())
    records["1"]["image"] = "../secret.png"
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match=r"'\.\./secret\.png' is not inside"):
        mathvista.read_samples(tmp_path / "data")


def test_the_unmasked_version_of_ai2d_is_refused(tmp_path):
    made.write_tsv(tmp_path / "AI2D_TEST_NO_MASK.tsv", made.ai2d_rows())
    with pytest.raises(DataError, match=r"its diagrams are not masked"):
        ai2d.read_samples(tmp_path)


def test_animated_cmyk_and_transparent_pictures_become_rgb():
    frames = [made.draw("red").quantize(), made.draw("blue").quantize()]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    first = decode_picture("", animated.getvalue())
    assert first.mode == "RGB" and first.getpixel((8, 8)) == (255, 0, 0)
    cmyk = decode_picture("", made.encoded(made.draw("blue").convert("CMYK"), "JPEG", quality=95))
    assert cmyk.mode == "RGB" and cmyk.size == (56, 56)
    assert decode_picture("", made.encoded(Image.new("RGBA", (4, 4)))).mode == "RGB"


def test_verify_counts_and_tells_what_is_odd(tmp_path):
    made.write_mathvista(tmp_path)
    cmyk = made.encoded(made.draw("blue").convert("CMYK"), "JPEG")
    made.write_picture(tmp_path, "images/1.png", cmyk)
    report = check_data("mathvista", tmp_path)
    assert report.all_problems() == [f"{tmp_path}: has 4 questions, 1,000 are published"]
    assert report.rows[0].notes == ("1 images are CMYK; a model is shown them as RGB",)
    assert report.is_known is False  # its testmini.json is not the authors'
    made.write_wemath(tmp_path / "w", 1)
    path = tmp_path / "w" / "testmini.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    problems = check_data("wemath", tmp_path / "w").all_problems()
    assert problems[-1] == (
        "problem wemath/2steps-0 lacks 2steps_multi, so it has none of four dimensions"
    )


def _geoqa_problem(**more):
    return {
        "id": 5,
        "image": np.full((8, 12), 200, np.uint8),
        "token_list": ["∠", "1", "=", "N_0"],
        "numbers": [30.0],
        "choice_nums": [20.0, 30.0, 145.0, 60.5],
        "label": 1,
        **more,
    }


@pytest.mark.parametrize("protocol", range(6))
def test_geoqas_pickle_is_converted_without_being_run(tmp_path, protocol):
    path = tmp_path / "test.pk"
    path.write_bytes(
        pickle.dumps([_geoqa_problem(), _geoqa_problem(id=6, subject="求x")], protocol)
    )
    convert_geoqa(path, tmp_path / "geoqa")
    first, second = geoqa.read_samples(tmp_path / "geoqa")
    assert first.question[0].content.startswith("∠1=30\nChoices:\nA. 20\nB. 30\nC. 145\nD. 60.5\n")
    assert (first.gold, first.id, second.id) == ("B", "geoqa/5", "geoqa/6")
    picture = decode_picture("", read_picture(first.images[0]))
    assert picture.size == (12, 8) and picture.getpixel((0, 0)) == (200, 200, 200)


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_asks_for_a_call_is_refused_and_nothing_is_called(tmp_path, protocol):
    victim = tmp_path / "victim"
    path = tmp_path / "test.pk"
    path.write_bytes(pickle.dumps([_Hostile(victim)], protocol))
    with pytest.raises(DataError, match=r"test\.pk: it asks for .* open to be called"):
        read_pickled_data(path)
    assert not victim.exists()


def test_a_pickle_that_holds_one_thing_a_million_times_is_read_at_once(tmp_path):
    value: list = ["x"]
    for _ in range(60):
        value = [value, value]
    path = tmp_path / "test.pk"
    path.write_bytes(pickle.dumps(value, 4))
    assert pickletools.optimize(path.read_bytes())
    read_pickled_data(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"no pickle", pickle.dumps(object)])
def test_damaged_pickles_are_errors(tmp_path, content):
    path = tmp_path / "test.pk"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test\.pk"):
        read_pickled_data(path)
