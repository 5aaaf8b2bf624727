"""`data verify` and `data fetch` of image sets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluators.clip_sets import CLIP_SETS, ClipSet
from evaluators.clip_sets.check import check_set
from evaluators.clip_sets.fetch import fetch_set
from nan_merge.errors import DataError
from tests.clip_set_folders import (
    drawn,
    encoded,
    folder_names,
    write_class_folders,
    write_original,
    write_parquet,
)
from tests.fake_hub import FakeHub

pytest.importorskip("PIL")


def published(name: str, per_class: int) -> ClipSet:
    """What a drawn set would be published as."""
    count = len(CLIP_SETS[name].class_names)
    return replace(
        CLIP_SETS[name], num_test=count * per_class, num_test_of_class=(per_class,) * count
    )


def test_a_whole_set_has_no_problem_and_one_digest_in_all_layouts(tmp_path):
    pytest.importorskip("pyarrow")
    digests = set()
    for number, write in enumerate((write_class_folders, write_original, write_parquet)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write("MNIST", folder)
        report = check_set(published("MNIST", 1), folder)
        assert report.problems == ()
        assert list(report.counts.items()) == [(str(digit), 1) for digit in range(10)]
        digests.add(report.digest)
    assert len(digests) == 1 and None not in digests
    (tmp_path / "0" / "test" / "3" / "0.png").write_bytes(encoded(drawn("MNIST", 3, 1)))
    assert check_set(published("MNIST", 1), tmp_path / "0").digest not in digests


def test_sizes_are_compared_with_the_published_ones(tmp_path):
    write_class_folders("EuroSAT", tmp_path)
    (problem,) = check_set(CLIP_SETS["EuroSAT"], tmp_path).problems
    assert problem == "EuroSAT: has 10 test images, 2,700 are published"


def test_labels_in_another_order_show_in_the_counts(tmp_path):
    # Labels without names, and two classes exchanged: only the counts can tell.
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    counts = list(range(1, 11))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    rows = [{"bytes": encoded(drawn("MNIST", 0, n))} for n in range(len(labels))]
    exchanged = [{2: 5, 5: 2}.get(label, label) for label in labels]
    for name, column in (("good", labels), ("bad", exchanged)):
        (tmp_path / name).mkdir()
        table = pyarrow.table({"image": rows, "label": column})
        parquet.write_table(table, tmp_path / name / "test-00000-of-00001.parquet")
    clip_set = replace(CLIP_SETS["MNIST"], num_test=55, num_test_of_class=tuple(counts))
    assert check_set(clip_set, tmp_path / "good").problems == ()
    (problem,) = check_set(clip_set, tmp_path / "bad").problems
    assert "'2' 6 (published 3), '5' 3 (published 6)" in problem
    assert "in the order of the class names?" in problem


def test_all_broken_images_are_named_and_copies_counted(tmp_path):
    write_class_folders("EuroSAT", tmp_path, per_class=2)
    test = tmp_path / "test"
    (test / "river" / "0.png").write_bytes(b"no image")
    (test / "forest" / "1.png").write_bytes(encoded(drawn("EuroSAT", 1, 1))[:300])
    shutil.copy(test / "river" / "1.png", test / "river" / "2.png")
    report = check_set(published("EuroSAT", 2), tmp_path)
    assert [Path(each.partition(":")[0]).parent.name for each in report.problems[:2]] == [
        "forest",
        "river",
    ]
    assert report.digest is None
    assert report.notes == ("1 images repeat others",)


def test_a_folder_of_something_else_is_one_problem(tmp_path):
    report = check_set(CLIP_SETS["SVHN"], tmp_path)
    assert report.digest is None and "no test split of SVHN" in report.problems[0]


def put_on_hub(hub: FakeHub, name: str) -> Path:
    pytest.importorskip("pyarrow")
    root = hub.root / CLIP_SETS[name].repository
    return write_parquet(name, root, folder_names(name))


@pytest.mark.parametrize("name", ["GTSRB", "SVHN"])
def test_a_set_from_the_hub(name, hub, tmp_path, monkeypatch):
    path = put_on_hub(hub, name)
    other = path.with_name("contrast-00000-of-00001.parquet")  # a corrupted copy lies beside it
    shutil.copy(path, other)
    monkeypatch.setitem(CLIP_SETS, name, published(name, 1))
    target = fetch_set(name, tmp_path / "data")
    assert [each.name for each in target.iterdir()] == ["test-00000-of-00001.parquet"]
    report = check_set(CLIP_SETS[name], target)
    assert report.problems == () and set(report.counts.values()) == {1}


def test_what_is_not_the_set_as_published_does_not_appear(hub, tmp_path):
    put_on_hub(hub, "GTSRB")
    with pytest.raises(DataError, match="43 test images, 12,630 are published"):
        fetch_set("GTSRB", tmp_path / "data")
    assert not (tmp_path / "data" / "GTSRB").exists()
    with pytest.raises(DataError, match="tanganke/dtd cannot be fetched from the hub"):
        fetch_set("DTD", tmp_path / "data")


def test_the_commands(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from pipelines.cli import app

    monkeypatch.setitem(CLIP_SETS, "EuroSAT", published("EuroSAT", 1))
    write_class_folders("EuroSAT", tmp_path / "EuroSAT")
    result = CliRunner().invoke(app, ["data", "verify", str(tmp_path), "--classes"])
    assert result.exit_code == 0, result.output
    assert "10 of 10" in result.output and "annual crop land" in result.output
    rng = np.random.default_rng(0)
    (tmp_path / "EuroSAT" / "test" / "river" / "1.png").write_bytes(rng.bytes(99))
    result = CliRunner().invoke(app, ["data", "verify", str(tmp_path)])
    assert result.exit_code == 2
    text = " ".join(result.output.split())
    assert "no picture of a known format" in text and "11 test images, 10 are published" in text
