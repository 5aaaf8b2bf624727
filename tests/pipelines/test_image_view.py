from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from nan_merge.errors import ConfigError, DataError
from pipelines.compare import compare_runs
from pipelines.compare_command import write_comparison
from pipelines.compared_models import AnswerReader
from pipelines.flips import read_flips
from pipelines.image_records import read_image_info
from pipelines.image_view import holds_images, show_image_predictions
from pipelines.run_comparison import compare_finished_run
from tests.finished_runs import write_image_run, write_import


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_image_run(tmp_path / "run", {"TA": {"a": "1100"}, "TIES": {"a": "1010"}})


def shown(folder: Path, **choices: object) -> str:
    out = StringIO()
    show_image_predictions(folder, Console(file=out, width=80), **choices)  # type: ignore[arg-type]
    return out.getvalue()


def test_answers_to_images_are_shown(run: Path):
    text = shown(run / "predictions" / "TIES")
    assert "TIES: a, 4 of 4 samples" in text
    assert "a/00001: wrong  answer 0 (0.61), gold 1" in text  # exp(-0.5)
    assert "a/00000" not in shown(run, wrong=True)
    assert shown(run, sample="a/00002").count("a/00002") == 2


def test_what_flipped_is_shown_of_every_model(run: Path, tmp_path: Path):
    write_comparison(compare_runs([run], None, AnswerReader(), 1000), tmp_path / "comparison")
    flips = read_flips(tmp_path / "comparison" / "flips.jsonl")
    assert flips == {"a": {"a/00001", "a/00002"}}
    text = shown(run, flips=flips)
    assert "a/00000" not in text
    assert "a/00001: right" in text and "a/00001: wrong" in text


def test_answers_that_are_not_there_are_refused(run: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no answer to a sample b/1"):
        shown(run, sample="b/1")
    with pytest.raises(ConfigError, match="holds no answer to such samples of c"):
        shown(run, benchmark="c")
    with pytest.raises(DataError, match=r"is no file of flips .*compare RUN --output DIR`"):
        read_flips(tmp_path / "nowhere.jsonl")


def test_folders_of_images_are_told_from_those_of_language_models(run: Path, tmp_path: Path):
    assert holds_images(run)
    assert not holds_images(write_import(tmp_path / "import", "m", {"mmlu": "10"}))


def test_records_without_a_description_say_how_to_renew_them(run: Path):
    path = run / "predictions" / "TIES" / "a.jsonl"
    path.with_suffix(".about.json").unlink()
    with pytest.raises(DataError, match="an older version made it"):
        read_image_info(path)


def test_a_finished_run_keeps_its_comparison(run: Path):
    found = compare_finished_run(run, ["TA", "TIES"])
    assert found is not None and found.baseline == "TA"
    assert (run / "comparison.json").is_file() and (run / "flips.jsonl").is_file()


def test_a_run_that_cannot_be_compared_is_done_all_the_same(run: Path, tmp_path: Path, caplog):
    (run / "predictions" / "TIES" / "a.jsonl").unlink()
    assert compare_finished_run(run, ["TA", "TIES"]) is None
    assert "TIES on a was never finished" in caplog.text
    one = write_image_run(tmp_path / "one", {"TA": {"a": "10"}})
    assert compare_finished_run(one, ["TA"]) is None
    assert compare_finished_run(tmp_path, ["TA"]) is None


def test_only_the_models_shown_are_compared_and_very_many_are_not(tmp_path: Path):
    answers = {name: {"a": "1010"} for name in ("TA", "TIES", "DARE", "DELLA")}
    found = compare_finished_run(write_image_run(tmp_path / "run", answers), ["DARE"])
    assert found is not None
    assert [model.model for model in found.models] == ["TA", "DARE"]
    assert compare_finished_run(tmp_path / "run", [f"m{place}" for place in range(41)]) is None
