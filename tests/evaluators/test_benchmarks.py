"""How benchmarks read their data: what is asked, and what is wrong with a damaged folder."""

import os
from collections import Counter
from pathlib import Path

import pytest

from evaluators.answers import Answer
from evaluators.benchmarks import PROFILES
from evaluators.benchmarks.mmlu_subjects import GROUPS, NUM_TEST_SAMPLES
from evaluators.profiles import Profile
from evaluators.samples import Sample
from nan_merge.errors import DataError
from tests.benchmark_folders import write_bbh, write_ceval, write_csv, write_gsm8k, write_mmlu
from tests.picture_folders import write_ai2d, write_geoqa, write_mathvista, write_wemath

WRITERS = {
    "mmlu": write_mmlu,
    "ceval": write_ceval,
    "ceval-test": write_ceval,
    "bbh": write_bbh,
    "gsm8k": write_gsm8k,
    "mathvista": write_mathvista,
    "wemath": write_wemath,
    "ai2d": write_ai2d,
    "geoqa": write_geoqa,
}
NAMES = [
    *(("mmlu", name) for name in ("oc-ppl", "oc-gen-5shot", "oc-gen-0shot")),
    *(("ceval", name) for name in ("oc-gen", "oc-ppl", "oc-ppl-base")),
    *(("ceval-test", name) for name in ("oc-gen", "oc-ppl", "oc-ppl-base")),
    *(("bbh", name) for name in ("oc-gen", "oc-gen-base")),
    *(("gsm8k", name) for name in ("qwen25-math-cot", "cot", "qwen25-wizard-zs", "oc")),
    ("mathvista", "mathvista-offline-v1"),
    ("wemath", "wemath"),
    *(("ai2d", name) for name in ("llava", "vlmeval")),
    *(("geoqa", name) for name in ("gllava-compat", "mcq-letter")),
]
every_profile = pytest.mark.parametrize(
    "profile", PROFILES.values(), ids=lambda p: f"{p.benchmark}-{p.name}"
)


def read(profile: Profile, folder: Path) -> list[Sample]:
    WRITERS[profile.benchmark](folder)
    return profile.samples(folder)


def message_of(profile: tuple[str, str], folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        PROFILES[profile].samples(folder)
    return str(caught.value).replace(str(folder), "DATA")


def test_every_profile_is_in_the_table():
    assert list(PROFILES) == NAMES


@every_profile
def test_samples_are_whole(profile: Profile, tmp_path: Path):
    samples = read(profile, tmp_path)
    assert len({sample.id for sample in samples}) == len(samples)
    assert {sample.subset for sample in samples} == set(profile.subsets)
    # A protocol of our own has no upstream to follow to the letter.
    assert list(profile.scorers) in (["compat", "strict"], ["strict"])
    for name, subsets in profile.groups.items():
        assert name.startswith(f"{profile.benchmark}-")
        assert set(subsets) <= set(profile.subsets)
    for sample in samples:
        assert bool(sample.choices) == (profile.decoding is None)
        pieces = (sample.lead, *sample.shots, sample.question)
        assert len({isinstance(piece, str) for piece in pieces}) == 1
        assert len(sample.choices) in (0, len(sample.labels))


@every_profile
def test_the_same_folder_gives_the_same_samples(profile: Profile, tmp_path: Path):
    assert read(profile, tmp_path) == profile.samples(tmp_path)


def test_mmlu_by_likelihood(tmp_path: Path):
    sample = read(PROFILES["mmlu", "oc-ppl"], tmp_path)[1]
    assert sample.id == "abstract_algebra/1"
    assert sample.lead == (
        "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
    )
    assert sample.shots[0] == (
        "abstract_algebra: what is 0,\ndev?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n"
    )
    assert sample.question == (
        "\nabstract_algebra: what is 1,\ntest?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert sample.choices == (" A", " B", " C", " D")
    assert sample.gold == "B"


def test_groups_of_mmlu_have_the_sizes_of_opencompass():
    assert {name: len(subjects) for name, subjects in GROUPS.items()} == {
        "mmlu-stem": 19,
        "mmlu-social-science": 12,
        "mmlu-humanities": 13,
        "mmlu-other": 13,
    }
    assert sum(NUM_TEST_SAMPLES.values()) == 14_042


def test_questions_that_are_there_twice_share_a_cluster(tmp_path: Path):
    write_mmlu(tmp_path)
    same, other = ["Same?", *"1234", "A"], ["Same?", *"1235", "A"]
    rows = [same, other, same]
    write_csv(tmp_path / "test" / "virology_test.csv", rows)
    samples = PROFILES["mmlu", "oc-ppl"].samples(tmp_path)
    clusters = {each.id: each.cluster_id for each in samples if each.subset == "virology"}
    assert clusters == {
        "virology/0": "virology/0",
        "virology/1": "virology/1",
        "virology/2": "virology/0",
    }


def test_the_authors_layout_of_bbh_gives_the_same_samples(tmp_path: Path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_bbh(ours)
    write_bbh(theirs)
    (theirs / "data").rename(theirs / "bbh")
    (theirs / "lib_prompt").rename(theirs / "cot-prompts")
    for path in (theirs / "cot-prompts").iterdir():
        path.write_text(f"DO NOT TRAIN. canary GUID 26b5\n-----\n{path.read_text()}")
    profile = PROFILES["bbh", "oc-gen"]
    assert profile.samples(theirs) == profile.samples(ours)


def test_a_missing_subset_names_its_file(tmp_path: Path):
    write_mmlu(tmp_path)
    (tmp_path / "test" / "virology_test.csv").unlink()
    (tmp_path / "test" / "sociology_test.csv").unlink()
    assert message_of(("mmlu", "oc-ppl"), tmp_path) == (
        "DATA/test: sociology_test.csv, virology_test.csv missing. mmlu is an average over all of "
        "its subsets, and without them it would be another number."
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["Q?", *"1234"]], "has 5 columns, expected 6: question, A, B, C, D, answer"),
        ([["Q?", *"1234", ""]], "the answer is blank; the question cannot be scored"),
        ([["Q?", *"1234", "E"]], "the answer is 'E', expected A, B, C or D"),
        ([["Q?", *"1234", "a"]], "the answer is 'a', expected A, B, C or D"),
        ([[" ", *"1234", "A"]], "the question is blank"),
    ],
)
def test_a_bad_question_names_file_and_line(rows: list, message: str, tmp_path: Path):
    write_mmlu(tmp_path)
    write_csv(tmp_path / "test" / "virology_test.csv", rows)
    assert message_of(("mmlu", "oc-ppl"), tmp_path) == f"DATA/test/virology_test.csv:1: {message}"


def test_lines_are_those_of_the_file_where_questions_span_several(tmp_path: Path):
    write_mmlu(tmp_path)
    rows = [["Two\nlines?", *"1234", "A"], ["Q?", *"1234", "X"]]
    write_csv(tmp_path / "test" / "virology_test.csv", rows)
    assert message_of(("mmlu", "oc-ppl"), tmp_path).startswith("DATA/test/virology_test.csv:3: ")


def test_another_number_of_columns_names_the_line(tmp_path: Path):
    write_mmlu(tmp_path)
    write_csv(tmp_path / "test" / "virology_test.csv", [["Q?", *"1234", "A"], ["Q?", "A"]])
    assert message_of(("mmlu", "oc-ppl"), tmp_path) == (
        "DATA/test/virology_test.csv:2: has 2 columns, expected 6"
    )


def test_broken_utf8_names_the_line(tmp_path: Path):
    write_mmlu(tmp_path)
    (tmp_path / "dev" / "virology_dev.csv").write_bytes(b"Q?,1,2,3,4,A\nQ\xff?,1,2,3,4,A\n")
    assert message_of(("mmlu", "oc-ppl"), tmp_path) == (
        "DATA/dev/virology_dev.csv:2: byte 14 is not UTF-8. Fetch the file again, or save it as "
        "UTF-8."
    )


def test_too_few_examples(tmp_path: Path):
    write_mmlu(tmp_path)
    write_csv(tmp_path / "dev" / "virology_dev.csv", [["Q?", *"1234", "A"]])
    assert message_of(("mmlu", "oc-ppl"), tmp_path) == (
        "DATA/dev/virology_dev.csv: has 1 examples, expected 5"
    )


def test_blank_answers_of_ceval_are_refused_with_the_reason(tmp_path: Path):
    write_ceval(tmp_path, blank_test=True)
    assert len(PROFILES["ceval", "oc-gen"].samples(tmp_path)) == 104
    message = message_of(("ceval-test", "oc-gen"), tmp_path)
    assert message.startswith("DATA/test/computer_network_test.csv: the answers are blank. C-Eval")
    assert "until July 2025" in message
    for path in (tmp_path / "test").iterdir():  # a copy without the column at all
        write_csv(path, [["id", "question", *"ABCD"], ["0", "Q?", *"1234"]])
    assert message_of(("ceval-test", "oc-gen"), tmp_path) == message


def test_an_id_of_ceval_that_is_there_twice(tmp_path: Path):
    write_ceval(tmp_path)
    header = ["id", "question", *"ABCD", "answer"]
    rows = [header, ["7", "Q?", *"1234", "A"], ["7", "R?", *"1234", "B"]]
    write_csv(tmp_path / "val" / "law_val.csv", rows)
    assert message_of(("ceval", "oc-gen"), tmp_path) == (
        "DATA/val/law_val.csv:3: id '7' is also that of DATA/val/law_val.csv:2"
    )


def test_a_missing_column_of_ceval(tmp_path: Path):
    write_ceval(tmp_path)
    header = ["id", "question", *"ABC", "answer"]
    write_csv(tmp_path / "val" / "law_val.csv", [header, ["7", "Q?", *"123", "A"]])
    assert message_of(("ceval", "oc-gen"), tmp_path) == (
        "DATA/val/law_val.csv:1: has no column D, but id, question, A, B, C, answer"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes"),
        ("[]", 'has no list of "examples"'),
        ('{"examples": []}', 'has no list of "examples"'),
        ('{"examples": [{"input": "x"}]}', "examples[0]: target is missing, expected text"),
        (
            '{"examples": [{"input": "x", "target": ""}]}',
            "examples[0]: target is '', expected text",
        ),
    ],
)
def test_a_bad_task_of_bbh(content: str, message: str, tmp_path: Path):
    write_bbh(tmp_path)
    (tmp_path / "data" / "snarks.json").write_text(content)
    found = message_of(("bbh", "oc-gen"), tmp_path)
    assert found.startswith("DATA/data/snarks.json: ")
    assert message in found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON: "),
        ("7", "expected an object"),
        ('{"question": "x"}', "answer is missing, expected text"),
        (
            '{"question": "x", "answer": "18"}',
            "the answer does not end in '#### ' and a whole number",
        ),
        ('{"question": "x", "answer": "#### "}', "the answer does not end in"),
    ],
)
def test_a_bad_problem_of_gsm8k(line: str, message: str, tmp_path: Path):
    write_gsm8k(tmp_path)
    path = tmp_path / "test.jsonl"
    path.write_text(f"{path.read_text()}\n{line}\n")
    found = message_of(("gsm8k", "oc"), tmp_path)
    assert found.startswith(f"DATA/test.jsonl:4: {message}")


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("NAN_MERGE_DATA", "")
    if not folder:
        pytest.skip("NAN_MERGE_DATA names no folder of benchmark data")
    return Path(folder)


@pytest.mark.parametrize("name", [("mmlu", "oc-gen-5shot"), ("bbh", "oc-gen"), ("gsm8k", "cot")])
@pytest.mark.parametrize("form", ["So the answer is {}.", "Steps.\nThe answer is **{}**."])
def test_strict_scorers_read_every_gold_answer(name: tuple[str, str], form: str, real_data: Path):
    profile = PROFILES[name]
    for sample in profile.samples(real_data / profile.benchmark):
        answer = Answer(sample.id, "", form.format(sample.gold), "stop")
        assert profile.scorers["strict"](sample, answer).is_correct, sample.id
        other = "(Z)" if sample.labels and profile.benchmark == "bbh" else "nothing"
        answer = Answer(sample.id, "", form.format(other), "stop")
        assert not profile.scorers["strict"](sample, answer).is_correct, sample.id


def test_real_data_has_its_published_sizes(real_data: Path):
    folder = real_data
    samples = PROFILES["mmlu", "oc-ppl"].samples(folder / "mmlu")
    assert Counter(each.subset for each in samples) == NUM_TEST_SAMPLES
    assert len(PROFILES["bbh", "oc-gen"].samples(folder / "bbh")) == 6_511
    problems = PROFILES["gsm8k", "oc"].samples(folder / "gsm8k")
    assert len(problems) == 1_319
    assert sum("," in each.gold for each in problems) > 0
