from pathlib import Path

import pytest

from evaluators.answers import Answer
from evaluators.prediction_journal import PredictionJournal
from evaluators.predictions import Prediction, read_key, read_predictions, write_predictions
from nan_merge.errors import DataError, OutputError

IDS = [f"s{number}" for number in range(6)]
SHARDS = [[0, 1], [2, 3], [4, 5]]


def prediction(number: int) -> Prediction:
    return Prediction(f"s{number}", "c", "x", "a\u2028b\x85\n", -0.5 * number)


def answers(shard: int) -> list[Prediction]:
    return [prediction(number) for number in SHARDS[shard]]


def open_journal(folder: Path, key: str = "key") -> PredictionJournal[Prediction]:
    return PredictionJournal(folder / "toy.jsonl", key, IDS, Prediction)


def journal_file(folder: Path) -> Path:
    return folder / ".toy.jsonl.partial"


def test_shards_in_any_order_become_the_record_of_an_undisturbed_run(tmp_path):
    write_predictions(tmp_path / "whole.jsonl", "key", [prediction(number) for number in range(6)])
    journal = open_journal(tmp_path)
    for shard in (2, 0, 1):
        assert not journal.is_complete
        journal.append(answers(shard))
    assert journal.finish() == read_predictions(tmp_path / "toy.jsonl", Prediction)
    assert (tmp_path / "toy.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not journal_file(tmp_path).exists()


def test_a_run_that_goes_on_asks_only_for_what_is_missing(tmp_path):
    assert open_journal(tmp_path).missing(SHARDS) == [0, 1, 2]
    open_journal(tmp_path).append(answers(1))
    assert open_journal(tmp_path).missing(SHARDS) == [0, 2]
    assert read_key(tmp_path / "toy.jsonl") is None  # no record before all is there
    again = open_journal(tmp_path)
    again.append(answers(0))
    again.append(answers(2))
    assert again.is_complete
    assert open_journal(tmp_path).is_complete  # killed before `finish`


def test_a_line_cut_off_by_a_kill_is_dropped_wherever_it_ends(tmp_path):
    open_journal(tmp_path).append(answers(0))
    before = journal_file(tmp_path).read_bytes()
    open_journal(tmp_path).append(answers(1))
    whole = journal_file(tmp_path).read_bytes()
    for length in range(len(before), len(whole)):
        journal_file(tmp_path).write_bytes(whole[:length])
        journal = open_journal(tmp_path)
        assert journal.missing(SHARDS) == [1, 2]
        journal.append(answers(1))
        journal.append(answers(2))
        assert open_journal(tmp_path).finish() == [prediction(number) for number in range(6)]


def test_answers_of_language_models_are_kept_like_predictions(tmp_path):
    answers = [
        Answer("a/0", "0" * 16, "", "choice", (-0.5, None, -2.25, -3.0), 7),
        Answer("a/1", "1" * 16, "It is\u2028 甲.\n", "length", (), 9, 256, 2),
    ]
    path = tmp_path / "mmlu.jsonl"
    ids = [answer.sample_id for answer in answers]
    PredictionJournal(path, "key", ids, Answer).append(answers[:1])
    journal = PredictionJournal(path, "key", ids, Answer)
    assert journal.missing([[0], [1]]) == [1]
    journal.append(answers[1:])
    assert journal.finish() == answers == read_predictions(path, Answer)
    # A record of another kind is no record of this one.
    with pytest.raises(DataError, match=r"mmlu\.jsonl is damaged"):
        read_predictions(path, Prediction)


def test_a_journal_cut_off_in_its_first_line_is_begun_anew(tmp_path):
    open_journal(tmp_path).append(answers(0))
    journal_file(tmp_path).write_bytes(journal_file(tmp_path).read_bytes()[:5])
    assert open_journal(tmp_path).missing(SHARDS) == [0, 1, 2]
    journal_file(tmp_path).write_bytes(b"")
    assert open_journal(tmp_path).missing(SHARDS) == [0, 1, 2]


def test_blocks_that_never_reached_the_disk_are_dropped(tmp_path):
    open_journal(tmp_path).append(answers(0))
    with journal_file(tmp_path).open("ab") as file:
        file.write(b"\0" * 40 + b"\n")
    open_journal(tmp_path).append(answers(1))
    assert open_journal(tmp_path).missing(SHARDS) == [2]


def test_answers_under_another_key_are_not_taken(tmp_path):
    open_journal(tmp_path, "old").append(answers(0))
    assert open_journal(tmp_path, "new").missing(SHARDS) == [0, 1, 2]


def test_a_path_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    journal = PredictionJournal(tmp_path / "file" / "toy.jsonl", "key", IDS, Prediction)
    with pytest.raises(OutputError, match="Cannot write"):
        journal.append(answers(0))
