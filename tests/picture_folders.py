"""Questions about drawn pictures, made up for the tests, in the public layouts of benchmarks."""

import base64
import csv
import io
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow")


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def draw(colour: str, count: int = 1, size: int = 56) -> Image.Image:
    """So many squares of a colour on white."""
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    for number in range(count):
        left, top = 4 + 18 * (number % 3), 4 + 18 * (number // 3)
        pen.rectangle((left, top, left + 12, top + 12), fill=colour)
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **more)
    return content.getvalue()


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], row_group_size: int = 2) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=row_group_size)


def write_picture(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def mathvista_records(num: int = 4) -> list[dict[str, Any]]:
    """Choices, integers, decimals and a list, in turn."""
    found: list[dict[str, Any]] = []
    for number in range(num):
        kind = ("text", "integer", "float", "list")[number % 4]
        choices = list(COLOURS) if kind == "text" else None
        answer = {
            "text": COLOURS[number // 4 % 4],
            "integer": str(number % 5 + 1),
            "float": "1.50",
            "list": "[1, 2]",
        }[kind]
        found.append(
            {
                "pid": str(number + 1),
                "question": f"What is in picture {number}?",
                "choices": choices,
                "unit": "cm" if kind == "float" else None,
                "precision": 2.0 if kind == "float" else None,
                "answer": answer,
                "question_type": "multi_choice" if choices else "free_form",
                "answer_type": kind,
                "metadata": {"task": "figure question answering", "skills": ["counting"]},
            }
        )
    return found


def write_mathvista(folder: Path, num: int = 4) -> None:
    """The authors' layout: JSON by pid, and image files."""
    records: dict[str, dict[str, Any]] = {}
    for number, record in enumerate(mathvista_records(num)):
        content = encoded(draw(COLOURS[number // 4 % 4], number % 5 + 1))
        image = write_picture(folder, f"images/{number + 1}.png", content)
        records[record["pid"]] = {**record, "image": image}
    (folder / "testmini.json").write_text(json.dumps(records), encoding="utf-8")


def write_mathvista_parquet(folder: Path, num: int = 4) -> None:
    """The hub's layout."""
    rows = [
        {**record, "image": f"images/{number}.png",
         "decoded_image": {"bytes": encoded(draw(COLOURS[number // 4 % 4], number % 5 + 1)),
                           "path": "x"}}
        for number, record in enumerate(mathvista_records(num))
    ]  # fmt: skip
    write_parquet(folder / "data" / "testmini-00000-of-00001.parquet", rows)


def write_mathvista_tsv(folder: Path, num: int = 4) -> None:
    """VLMEvalKit's layout: question, hint and choices are one text."""
    rows: list[dict[str, Any]] = []
    for number, record in enumerate(mathvista_records(num)):
        text = f"Hint: Please answer.\nQuestion: {record['question']}"
        if record["unit"]:
            text += f" (Unit: {record['unit']})"
        if record["choices"]:
            listed = zip("ABCD", record["choices"], strict=True)
            text += "\nChoices:\n" + "\n".join(f"({label}) {each}" for label, each in listed)
        metadata = record["metadata"]
        picture = draw(COLOURS[number // 4 % 4], number % 5 + 1)
        rows.append(
            {
                "index": record["pid"],
                "image": as_base64(encoded(picture)),
                "question": text,
                "choices": str(record["choices"] or ""),
                "unit": record["unit"] or "",
                "precision": record["precision"] or "",
                "answer": record["answer"],
                "question_type": record["question_type"],
                "answer_type": record["answer_type"],
                "task": metadata["task"],
                "skills": str(metadata["skills"]),
            }
        )
    write_tsv(folder / "MathVista_MINI.tsv", rows)


def write_wemath(folder: Path, num_problems: int = 2) -> None:
    """The authors' layout: problems of two steps and of three, in turn."""
    records: list[dict[str, Any]] = []
    for number in range(num_problems):
        steps = 2 + number % 2
        for part in [*map(str, range(1, steps + 1)), "multi"]:
            name = f"{steps}steps/image/{number}-{part}.png"
            write_picture(folder, name, encoded(draw(COLOURS[number % 4], number % 5 + 1)))
            records.append(
                {
                    "ID": f"{steps}steps-{number}",
                    "split": "testmini",
                    "knowledge concept": "Understanding of squares",
                    "question": f"How many squares, part {part}? ( )",
                    "option": "A. 1; B. 2; C. 3;D.4; E. No correct answer",
                    "answer": "ABCD"[number % 4],
                    "image_path": name,
                    "key": f"{steps}steps_{part}",
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "testmini.json").write_text(json.dumps(records), encoding="utf-8")


def _wemath_rows(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """What `write_wemath` has written, each with its picture; the folder is the only source."""
    records = json.loads((folder / "testmini.json").read_text())
    return [(record, (folder / record["image_path"]).read_bytes()) for record in records]


def write_wemath_parquet(folder: Path, num_problems: int = 2) -> None:
    """The hub's layout, and nothing else in the folder."""
    write_wemath(folder / "source", num_problems)
    rows = [
        {**record, "image_path": {"bytes": content, "path": None}}
        for record, content in _wemath_rows(folder / "source")
    ]
    write_parquet(folder / "data" / "testmini-00000-of-00001.parquet", rows)


def write_wemath_tsv(folder: Path, num_problems: int = 2) -> None:
    """VLMEvalKit's layout: a column for each option."""
    write_wemath(folder / "source", num_problems)
    options = ("1", "2", "3", "4", "No correct answer")
    rows = [
        {
            "index": str(number),
            "image": as_base64(content),
            **{key: record[key] for key in ("ID", "key", "question", "answer")},
            "knowledge concept": record["knowledge concept"],
            **dict(zip("ABCDE", options, strict=True)),
        }
        for number, (record, content) in enumerate(_wemath_rows(folder / "source"))
    ]
    write_tsv(folder / "WeMath.tsv", rows)


def ai2d_rows(num: int = 4) -> list[dict[str, Any]]:
    """Two questions a diagram; the second refers to the first's picture by its index."""
    return [
        {
            "index": str(number),
            "image": as_base64(encoded(draw(COLOURS[number // 2 % 4], number // 2 % 5 + 1)))
            if number % 2 == 0
            else str(number - 1),
            "question": f"Which colour, {number}?",
            **dict(zip("ABCD", COLOURS, strict=True)),
            "answer": "ABCD"[number // 2 % 4],
            "category": "colours",
        }
        for number in range(num)
    ]


def write_ai2d(folder: Path, num: int = 4) -> None:
    write_tsv(folder / "AI2D_TEST.tsv", ai2d_rows(num))


def write_ai2d_parquet(folder: Path, num: int = 4) -> None:
    rows = [
        {
            "question": f"Which colour, {number}?",
            "options": list(COLOURS),
            "answer": str(number // 2 % 4),
            "image": {
                "bytes": encoded(draw(COLOURS[number // 2 % 4], number // 2 % 5 + 1)),
                "path": None,
            },
        }
        for number in range(num)
    ]
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows, row_group_size=3)


def write_geoqa(folder: Path, num: int = 4) -> None:
    """G-LLaVA's layout: questions with their choices, and answers in a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    questions, answers = [], []
    for number in range(num):
        content = encoded(draw(COLOURS[number % 4], number % 5 + 1))
        name = write_picture(folder, f"test/{number}.png", content)
        text = f"How many squares, {number}? Choices: A. 1 B. 2 C. 3 D. 4"
        questions.append({"question_id": number, "image": name, "text": text})
        answers.append({"question_id": number, "text": "ABCD"[number % 4]})
    for name, records in (("test_questions", questions), ("test_answers", answers)):
        lines = "\n".join(json.dumps(record) for record in records)
        (folder / f"{name}.jsonl").write_text(lines + "\n", encoding="utf-8")


def write_geoqa_tsv(folder: Path, num: int = 4) -> None:
    rows = [
        {
            "index": str(number),
            "image": as_base64(encoded(draw(COLOURS[number % 4], number % 5 + 1))),
            "question": f"How many squares, {number}?",
            **dict(zip("ABCD", "1234", strict=True)),
            "answer": "ABCD"[number % 4],
        }
        for number in range(num)
    ]
    write_tsv(folder / "geoqa_test.tsv", rows)
