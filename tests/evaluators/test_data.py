"""Checking a folder of data, and fetching one from a hub on this machine."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evaluators import data_check
from evaluators.benchmarks import PROFILES
from evaluators.benchmarks.bbh_tasks import NUM_SAMPLES, TASKS
from evaluators.benchmarks.ceval_subjects import SUBJECTS as CEVAL_SUBJECTS
from evaluators.benchmarks.mmlu_subjects import NUM_TEST_SAMPLES
from evaluators.data_check import canonical_digest, check_data
from evaluators.data_fetch import fetch_benchmark
from nan_merge.errors import ConfigError, DataError, OutputError
from tests.benchmark_folders import write_bbh, write_ceval, write_csv, write_gsm8k, write_mmlu
from tests.fake_hub import FakeHub


def test_a_digest_depends_on_what_is_written_and_not_on_the_order_of_keys():
    # printf '{"answer":"1","question":"é"}\n' | sha256sum
    expected = hashlib.sha256('{"answer":"1","question":"é"}\n'.encode()).hexdigest()
    assert canonical_digest([{"question": "é", "answer": "1"}]) == expected


def test_sizes_are_compared_with_the_published_ones(tmp_path: Path):
    write_mmlu(tmp_path)
    report = check_data("mmlu", tmp_path)
    assert len(report.rows) == 2 * 57
    assert [row.num_found for row in report.rows[:2]] == [5, 2]
    assert [row.num_expected for row in report.rows[:2]] == [5, 100]
    assert report.rows[0].problems == ()
    assert report.rows[1].problems == (
        f"{tmp_path}/test/abstract_algebra_test.csv: has 2 questions, 100 are published",
    )
    assert report.is_known is False


def test_every_damaged_file_is_told_of_at_once(tmp_path: Path):
    write_mmlu(tmp_path)
    (tmp_path / "test" / "virology_test.csv").unlink()
    write_csv(tmp_path / "dev" / "anatomy_dev.csv", [["Q?", *"1234", "E"]])
    report = check_data("mmlu", tmp_path)
    problems = "\n".join(report.all_problems())
    assert "virology_test.csv: no such file" in problems
    assert "anatomy_dev.csv:1: the answer is 'E'" in problems
    assert report.digest is None
    assert report.is_known is None


def test_questions_that_are_there_twice_are_noted(tmp_path: Path):
    write_mmlu(tmp_path)
    write_csv(tmp_path / "test" / "virology_test.csv", [["Q?", *"1234", "A"]] * 3)
    rows = check_data("mmlu", tmp_path).rows
    assert {row.subset: row.notes for row in rows if row.notes} == {
        "virology": ("2 repeat others",)
    }


def test_blank_answers_of_ceval_are_a_problem_of_the_test_split_alone(tmp_path: Path):
    write_ceval(tmp_path, blank_test=True)
    report = check_data("ceval", tmp_path)
    assert report.all_problems() == ["val has 104 questions in all, 1,346 are published"]
    assert all(
        "the answers are blank" in row.problems[0]
        for row in check_data("ceval-test", tmp_path).rows
        if row.split == "test"
    )


def test_files_of_bbh_that_are_not_the_authors_are_told_of(tmp_path: Path):
    write_bbh(tmp_path)
    report = check_data("bbh", tmp_path)
    assert len(report.rows) == 2 * 27
    assert all(
        "its SHA-256 is not that of the authors' file" in row.problems[-1] for row in report.rows
    )


def test_an_unknown_benchmark_lists_those_there_are():
    with pytest.raises(ConfigError, match="mmlu, ceval, ceval-test, bbh, gsm8k"):
        check_data("mmmlu", Path())
    with pytest.raises(
        ConfigError, match="'mmmlu' cannot be fetched, have mmlu, ceval, bbh, gsm8k"
    ):
        fetch_benchmark("mmmlu", Path())


@pytest.mark.parametrize("benchmark", ["mmlu", "bbh", "gsm8k"])
def test_real_data_is_whole(benchmark: str):
    folder = os.environ.get("NAN_MERGE_DATA", "")
    if not folder:
        pytest.skip("NAN_MERGE_DATA names no folder of benchmark data")
    report = check_data(benchmark, Path(folder) / benchmark)
    assert report.all_problems() == []
    assert report.is_known is True


def write_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_mmlu_from_the_hub(hub: FakeHub, tmp_path: Path):
    for subject, size in NUM_TEST_SAMPLES.items():
        for split, count in (("dev", 5), ("test", size)):
            rows = [
                {
                    "question": f'{subject} "{n}",\n?',
                    "subject": subject,
                    "choices": list("wxyz"),
                    "answer": n % 4,
                }
                for n in range(count)
            ]
            write_parquet(
                hub.root / "cais/mmlu" / subject / f"{split}-00000-of-00001.parquet", rows
            )
    folder = fetch_benchmark("mmlu", tmp_path)
    samples = PROFILES["mmlu", "oc-ppl"].samples(folder)
    assert len(samples) == 14_042
    assert samples[2].question == '\nabstract_algebra "2",\n?\nA. w\nB. x\nC. y\nD. z\nAnswer:'
    assert samples[2].gold == "C"


def test_ceval_from_the_hub(hub: FakeHub, tmp_path: Path):
    for place, subject in enumerate(CEVAL_SUBJECTS):
        # 46 subjects of 26 questions and 6 of 25 make the 1,346 that are published.
        for split, count in (("dev", 5), ("val", 26 if place < 46 else 25), ("test", 1)):
            rows = [
                {
                    "id": n,
                    "question": "问",
                    **dict(zip("ABCD", "甲乙丙丁", strict=True)),
                    "answer": "" if split == "test" else "B",
                    "explanation": "",
                }
                for n in range(count)
            ]
            write_parquet(hub.root / "ceval/ceval-exam" / subject / f"{split}-0.parquet", rows)
    folder = fetch_benchmark("ceval", tmp_path)
    assert len(PROFILES["ceval", "oc-gen"].samples(folder)) == 1_346
    assert check_data("ceval", folder).all_problems() == []


def test_data_of_another_form_or_size_is_refused_and_leaves_nothing(hub: FakeHub, tmp_path: Path):
    path = hub.root / "openai/gsm8k/main"
    for split in ("train", "test"):
        write_parquet(path / f"{split}-0.parquet", [{"question": "?", "answer": "#### 1"}])
    with pytest.raises(DataError) as caught:
        fetch_benchmark("gsm8k", tmp_path)
    assert str(caught.value) == (
        f"What was fetched is not gsm8k as published: {tmp_path}/gsm8k/test.jsonl: "
        "has 1 questions, 1319 are published"
    )
    write_parquet(path / "train-0.parquet", [{"problem": "?"}])
    (tmp_path / "home").rename(tmp_path / "earlier")
    with pytest.raises(DataError, match=r"has another form than this version knows \(KeyError"):
        fetch_benchmark("gsm8k", tmp_path)
    assert not (tmp_path / "gsm8k").exists()


def test_gsm8k_from_the_hub(hub: FakeHub, tmp_path: Path):
    for split, count in (("train", 3), ("test", 1319)):
        rows = [{"question": f"{n}?", "answer": f"so\n#### {n:,}"} for n in range(count)]
        write_parquet(hub.root / "openai/gsm8k/main" / f"{split}-0.parquet", rows)
    folder = fetch_benchmark("gsm8k", tmp_path)
    samples = PROFILES["gsm8k", "oc"].samples(folder)
    assert samples[1000].gold == "1,000"
    with pytest.raises(OutputError, match="exists already"):
        fetch_benchmark("gsm8k", tmp_path)


def test_a_hub_without_the_data(hub: FakeHub, tmp_path: Path):
    with pytest.raises(DataError, match="openai/gsm8k cannot be fetched from the hub"):
        fetch_benchmark("gsm8k", tmp_path)
    assert not (tmp_path / "gsm8k").exists()


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "website"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *args: None  # pyright: ignore[reportAttributeAccessIssue]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_bbh_from_its_authors(
    website: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, address = website
    checksums = {}
    for name in ("bbh", "cot-prompts"):
        (folder / name).mkdir()
    for task in TASKS:
        examples = [{"input": f"{n}?", "target": "(A)"} for n in range(NUM_SAMPLES[task])]
        data, prompt = json.dumps({"examples": examples}), f"Solve {task}.\n\nQ: 1?\nA: 1."
        (folder / "bbh" / f"{task}.json").write_text(data)
        (folder / "cot-prompts" / f"{task}.txt").write_text(f"a canary GUID\n-----\n{prompt}")
        checksums[task] = tuple(
            hashlib.sha256(each.encode()).hexdigest() for each in (data, prompt)
        )
    with pytest.raises(DataError, match="its SHA-256 is not that of the authors' file"):
        fetch_benchmark("bbh", tmp_path, address=address)
    assert not (tmp_path / "bbh").exists()
    monkeypatch.setattr(data_check, "bbh_checksums", lambda: checksums)
    monkeypatch.setattr("evaluators.data_fetch.bbh_checksums", lambda: checksums)
    fetch_benchmark("bbh", tmp_path, address=address)
    assert len(PROFILES["bbh", "oc-gen"].samples(tmp_path / "bbh")) == 6_511
    (folder / "bbh" / "snarks.json").unlink()
    with pytest.raises(DataError, match=r"snarks\.json cannot be fetched: HTTP Error 404"):
        fetch_benchmark("bbh", tmp_path / "again", address=address)


def test_gsm8k_made_up_is_not_the_public_one(tmp_path: Path):
    write_gsm8k(tmp_path)
    report = check_data("gsm8k", tmp_path)
    assert report.is_known is False
    assert report.all_problems() == [f"{tmp_path}/test.jsonl: has 2 questions, 1319 are published"]
