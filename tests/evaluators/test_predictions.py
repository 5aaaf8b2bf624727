import pytest

from evaluators.predictions import Prediction, read_key, read_predictions, write_predictions
from nan_merge.errors import DataError

ODD = "a\u2028b\u2029c\x85d\x0be\x1cf\ng\rh"  # all that Python calls the end of a line


def test_predictions_are_read_back_whatever_their_letters(tmp_path):
    predictions = [
        Prediction(f"sample {ODD}", "cluster", "ü", ODD, -0.5),
        Prediction("other", "cluster", "ü", "ü", -0.25),
    ]
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, "key", predictions)
    assert read_predictions(path, Prediction) == predictions
    assert read_key(path) == "key"


def test_no_predictions_are_read_back(tmp_path):
    write_predictions(tmp_path / "none.jsonl", "key", [])
    assert read_predictions(tmp_path / "none.jsonl", Prediction) == []


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_file_that_was_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, "key", [Prediction(str(i), "c", "x", "x", 0.0) for i in range(3)])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(DataError, match="is damaged"):
        read_predictions(path, Prediction)
