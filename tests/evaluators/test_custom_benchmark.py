"""Benchmarks of one's own: what a file may say, what is asked then, and what is wrong with it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluators.answers import Answer
from evaluators.custom_benchmark import load_benchmark
from evaluators.samples import Message
from nan_merge.errors import ConfigError, DataError
from tests.benchmark_folders import write_csv

EXAMPLE = Path(__file__).parents[2] / "configs" / "benchmarks" / "example.yaml"
COLUMNS = ("topic", "passage", "question", *"abcd", "answer")
FRANCE = ("europe", "p1", "Capital of France?", "Rome", "Paris", "Bonn", "Bern", "B")
ITALY = ("europe", "p1", "Capital of Italy?", "Rome", "Paris", "Bonn", "Bern", "A")
JAPAN = ("asia", "p2", "Capital of Japan?", "Seoul", "Tokyo", "Hanoi", "Delhi", "B")
KOREA = ("asia", "p3", "Capital of Korea?", "Seoul", "Tokyo", "Hanoi", "Delhi", "A")
SUMS = "name: sums\nquestions: sums.jsonl\nprompt: '{{ x }} + {{ y }} ='\ngold: '{{ x + y }}'\n"
NUMBER = "extract: {kind: number}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "capitals.csv", [COLUMNS, FRANCE, JAPAN, ITALY])
    write_csv(tmp_path / "capitals_solved.csv", [COLUMNS, KOREA, ITALY, FRANCE, JAPAN, FRANCE])
    sums = [{"x": 1, "y": 2}, {"x": 990, "y": 10}]
    lines = "".join(f"{json.dumps(each)}\n" for each in sums)
    (tmp_path / "sums.jsonl").write_text(lines)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "benchmark.yaml"
    path.write_text(text)
    return path


def config_error(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_benchmark(write(folder, text))
    return str(caught.value).replace(str(folder), "DATA")


def data_error(folder: Path, text: str) -> str:
    profile = load_benchmark(write(folder, text))
    with pytest.raises(DataError) as caught:
        profile.samples(folder)
    return str(caught.value).replace(str(folder), "DATA")


def answer(text: str) -> Answer:
    return Answer("x", "", text, "stop")


def test_the_example_in_configs(folder: Path):
    profile = load_benchmark(EXAMPLE)
    samples = profile.samples(folder)
    assert (profile.benchmark, profile.name) == ("capitals", "custom")
    assert profile.subsets == ("europe", "asia")
    assert [sample.id for sample in samples] == ["europe/0", "asia/1", "europe/2"]
    assert [sample.cluster_id for sample in samples] == ["europe/p1", "asia/p2", "europe/p1"]
    assert samples[1].shots == (
        "Question: Capital of Korea?\nA. Seoul\nB. Tokyo\nC. Hanoi\nD. Delhi\nAnswer: A\n\n",
        "Question: Capital of Japan?\nA. Seoul\nB. Tokyo\nC. Hanoi\nD. Delhi\nAnswer: B\n\n",
    )
    assert samples[1].question == (
        "Question: Capital of Japan?\nA. Seoul\nB. Tokyo\nC. Hanoi\nD. Delhi\nAnswer:"
    )
    assert profile.decoding is not None
    assert (profile.decoding.max_tokens, profile.decoding.stop) == (16, ("\n\n",))
    verdict = profile.scorers["strict"](samples[1], answer(" B. Tokyo"))
    assert (verdict.extracted, verdict.is_correct) == ("B", True)


def test_another_file_is_another_upstream(folder: Path):
    profile = load_benchmark(write(folder, f"{SUMS}extract: {{kind: number}}"))
    other = load_benchmark(write(folder, f"{SUMS}extract: {{kind: number}}\nmax_tokens: 9"))
    assert profile.upstream.file == other.upstream.file == "benchmark.yaml"
    assert profile.upstream.commit != other.upstream.commit


@pytest.mark.parametrize(
    ("extract", "completion", "extracted", "is_correct"),
    [
        ("{kind: number}", "so the answer is 1,000.", "1,000", True),
        ("{kind: number}", "none", None, False),
        ("{kind: boxed}", "\\boxed{7} no, \\boxed{1000}", "1000", True),
        ("{kind: boxed}", "\\boxed{1000} and \\boxed{10", "1000", True),
        ("{kind: boxed}", "\\boxed{1,000}", "1,000", False),
        ("{kind: boxed}\nmetric: number", "\\boxed{1,000}", "1,000", True),
        ("{kind: regex, pattern: '= *([0-9]+)'}", "= 7 = 1000", "1000", True),
        ("{kind: regex, pattern: '= *([0-9]+)', take: first}", "= 7 = 1000", "7", False),
        ("{kind: regex, pattern: '[0-9]+'}", "1000", "1000", True),
        ("{kind: regex, pattern: '[0-9]+'}", "", None, False),
    ],
)
def test_extractions(
    extract: str, completion: str, extracted: str | None, is_correct: bool, folder: Path
):
    profile = load_benchmark(write(folder, f"{SUMS}extract: {extract}"))
    sample = profile.samples(folder)[1]
    assert sample.gold == "1000"
    verdict = profile.scorers["compat"](sample, answer(completion))
    assert (verdict.extracted, verdict.is_correct) == (extracted, is_correct)


def test_choices_are_compared_by_likelihood(folder: Path):
    text = f"{SUMS}choices: [' {{{{ x + y }}}}', ' {{{{ x * y }}}}']"
    profile = load_benchmark(write(folder, text))
    sample = profile.samples(folder)[0]
    assert profile.decoding is None
    assert (sample.choices, sample.labels, sample.gold) == ((" 3", " 2"), ("3", "2"), "3")
    found = Answer("x", "", "", "choice", (-1.0, -2.0))
    assert profile.scorers["strict"](sample, found).is_correct


def test_chats_have_turns(folder: Path):
    text = (
        f"{SUMS}extract: {{kind: number}}\nchat_template: true\nsystem: Be brief.\n"
        "shots: {questions: sums.jsonl, count: 1, solution: '{{ x + y }}'}"
    )
    profile = load_benchmark(write(folder, text))
    sample = profile.samples(folder)[1]
    assert profile.uses_chat_template
    assert sample.lead == (Message("system", "Be brief."),)
    assert sample.shots == ((Message("user", "1 + 2 ="), Message("assistant", "3")),)
    assert sample.question == (Message("user", "990 + 10 ="),)


def test_parquet(folder: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"x": 1, "y": 2}, {"x": 990, "y": 10}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "sums.parquet")
    text = f"{SUMS}extract: {{kind: number}}"
    from_lines = load_benchmark(write(folder, text)).samples(folder)
    assert (
        load_benchmark(write(folder, text.replace(".jsonl", ".parquet"))).samples(folder)
        == from_lines
    )
    (folder / "sums.parquet").write_bytes(b"no parquet")
    assert data_error(folder, text.replace(".jsonl", ".parquet")).startswith(
        "DATA/sums.parquet: is not parquet: "
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{SUMS}", "expected either choices or extract"),
        (f"{SUMS}{NUMBER}\nchoices: [a, b]", "expected either choices or extract"),
        (f"{SUMS}choices: [a]", "choices: found one, expected at least two"),
        (f"{SUMS}choices: [a, b]\nlabels: [A]", "labels: found 1 for 2 choices, expected one each"),
        (f"{SUMS}{NUMBER}\nsubset: x", "expected both subset, a column, and subsets"),
        (
            f"{SUMS}extract: {{kind: nombre}}",
            "DATA/benchmark.yaml:5:11: extract.kind: found 'nombre'",
        ),
        (
            f"{SUMS}extract: {{kind: regex, pattern: '('}}",
            "DATA/benchmark.yaml:5:24: extract.pattern: is no regular expression: missing )",
        ),
        (f"{SUMS}extract: {{kind: letter, labels: [a, b]}}", "expected one capital letter each"),
        (f"{SUMS}extrakt: {{kind: number}}", "extrakt: unknown key"),
        (
            SUMS.replace("{{ x + y }}", "{{ x + }}") + NUMBER,
            "DATA/benchmark.yaml:4:1: gold: is no template of jinja2: ",
        ),
        (
            SUMS.replace("sums.jsonl", "../sums.jsonl") + NUMBER,
            "DATA/benchmark.yaml:2:1: questions: '../sums.jsonl' leaves the folder",
        ),
        (SUMS.replace("sums.jsonl", "/etc/sums.jsonl") + NUMBER, "leaves the folder of the data"),
        (
            SUMS.replace("sums.jsonl", "sums.txt") + NUMBER,
            "'sums.txt' is no .csv, .jsonl or .parquet file",
        ),
        (SUMS.replace("name: sums", "name: mmlu") + NUMBER, "mmlu is a benchmark already"),
        (
            SUMS.replace("name: sums", "name: My sums") + NUMBER,
            "DATA/benchmark.yaml:1:1: name: found 'My sums'",
        ),
    ],
)
def test_a_file_that_is_wrong_names_the_key(text: str, message: str, folder: Path):
    assert message in config_error(folder, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SUMS.replace("{{ y }}", "{{ yy }}"),
            "DATA/sums.jsonl:1: prompt: 'yy' is undefined; the columns are x, y; did you mean 'y'?",
        ),
        (
            SUMS.replace("x + y", "x / 0"),
            "DATA/sums.jsonl:1: gold: cannot be filled: division by zero",
        ),
        (
            SUMS.replace("{{ x + y }}", "  "),
            "DATA/sums.jsonl:1: gold: the answer is blank; the question cannot be scored",
        ),
        (f"{SUMS}id: z\n", "DATA/sums.jsonl:1: id: column 'z' is missing or blank"),
        (
            f"{SUMS}subset: x\nsubsets: ['1']\n",
            "DATA/sums.jsonl:2: subset: '990' is not in subsets",
        ),
        (f"{SUMS}subset: x\nsubsets: ['1', '990', '7']\n", "DATA/sums.jsonl: no questions on 7"),
        (SUMS.replace("sums.jsonl", "none.jsonl"), "DATA/none.jsonl: no such file"),
        (
            f"{SUMS}shots: {{questions: sums.jsonl, count: 3, solution: x}}\n",
            "DATA/sums.jsonl: has 2 examples on sums, shots.count wants 3",
        ),
    ],
)
def test_a_table_that_is_wrong_names_file_and_line(text: str, message: str, folder: Path):
    assert data_error(folder, f"{text}extract: {{kind: number}}") == message


def test_an_id_that_is_there_twice(folder: Path):
    (folder / "sums.jsonl").write_text('{"x": 1, "y": 2}\n{"x": 1, "y": 3}\n')
    assert data_error(folder, f"{SUMS}id: x\nextract: {{kind: number}}") == (
        "DATA/sums.jsonl:2: id 'sums/1' is also that of DATA/sums.jsonl:1"
    )


def test_a_gold_answer_that_is_no_label(folder: Path):
    write_csv(folder / "capitals.csv", [COLUMNS, FRANCE, JAPAN, (*ITALY[:-1], "Rome")])
    with pytest.raises(
        DataError, match=r"capitals\.csv:4: gold: 'Rome' is none of the labels A, B"
    ):
        load_benchmark(EXAMPLE).samples(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ x.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self._TemplateReference__context }}",
    ],
)
def test_templates_reach_nothing_but_the_row(template: str, folder: Path):
    text = SUMS.replace("{{ x + y }}", template.replace("'", "''"))
    message = data_error(folder, f"{text}extract: {{kind: number}}")
    assert message.startswith("DATA/sums.jsonl:1: gold: ")


def test_a_scorer_does_not_depend_on_where_the_sample_is_from(folder: Path):
    profile = load_benchmark(write(folder, f"{SUMS}extract: {{kind: number}}"))
    sample = replace(profile.samples(folder)[0], gold="7")
    assert profile.scorers["strict"](sample, answer("7")).is_correct
