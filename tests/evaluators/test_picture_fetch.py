"""Fetching questions about pictures from a hub and a website on this machine."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluators import data_check, picture_fetch
from evaluators.benchmarks import PROFILES
from evaluators.data_check import check_data
from evaluators.data_fetch import download, fetch_benchmark
from evaluators.picture_check import KNOWN_FILES
from evaluators.picture_fetch import PLACES, take_pictures
from nan_merge.errors import DataError, OutputError
from pipelines.cli import app
from tests import picture_folders as made
from tests.fake_hub import COMMIT, FakeHub

WRITE: dict[str, Callable[[Path, int], None]] = {
    "mathvista": made.write_mathvista_parquet,
    "wemath": made.write_wemath_parquet,
    "ai2d": made.write_ai2d_parquet,
}
NODES = '[{"full node": "Measurement_Angles_Understanding of squares"}]'


def put_on_hub(hub: FakeHub, benchmark: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small benchmark in the hub's layout, published as being of this size."""
    folder = hub.root / PLACES[benchmark].repository
    WRITE[benchmark](folder, 4)
    shutil.rmtree(folder / "source", ignore_errors=True)
    if benchmark == "wemath":
        (folder / "knowledge_structure_nodes.json").write_text(NODES)
    # What lies beside it on the hub and is not needed.
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"other")
    num = len(PROFILES[benchmark, NAMES[benchmark]].samples(folder))
    monkeypatch.setitem(data_check._NUM_PUBLISHED, benchmark, num)
    return folder


NAMES = {"mathvista": "mathvista-offline-v1", "wemath": "wemath", "ai2d": "llava"}


@pytest.mark.parametrize("benchmark", WRITE)
def test_a_benchmark_of_pictures_from_the_hub(
    benchmark: str, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    upstream = put_on_hub(hub, benchmark, monkeypatch)
    result = CliRunner().invoke(app, ["data", "fetch", benchmark, str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    target = tmp_path / "data" / benchmark
    assert check_data(benchmark, target).all_problems() == []
    found, expected = (
        PROFILES[benchmark, NAMES[benchmark]].samples(at) for at in (target, upstream)
    )
    assert [(each.id, each.question, each.gold, each.tags) for each in found] == [
        (each.id, each.question, each.gold, each.tags) for each in expected
    ]
    assert [each.images[0].digest for each in found] == [each.images[0].digest for each in expected]
    assert not any("train" in name for name in hub.sent)
    if benchmark == "wemath":
        assert "domain: Angles" in found[0].tags


def test_the_commit_that_is_known_is_asked_for_unless_another_is_named(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_on_hub(hub, "ai2d", monkeypatch)
    known = PLACES["ai2d"].revision
    assert known is not None
    fetch_benchmark("ai2d", tmp_path / "known")
    snapshots = tmp_path / "home" / "datasets--lmms-lab--ai2d" / "snapshots"
    assert [each.name for each in snapshots.iterdir()] == [known]
    hub.unknown |= {known, "v9"}
    fetch_benchmark("ai2d", tmp_path / "newest", "main")
    assert {each.name for each in snapshots.iterdir()} == {known, COMMIT}
    result = CliRunner().invoke(app, ["data", "fetch", "ai2d", str(tmp_path), "--revision", "v9"])
    assert result.exit_code == 2
    assert "lmms-lab/ai2d on the hub has no revision v9" in " ".join(result.output.split())


def test_a_gated_repository_says_how_to_get_in(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_on_hub(hub, "mathvista", monkeypatch)
    hub.gated.add("AI4Math/MathVista")
    with pytest.raises(DataError, match=r"is gated: accept its terms at .*/datasets/AI4Math/Math"):
        fetch_benchmark("mathvista", tmp_path)
    assert not (tmp_path / "mathvista").exists()


def test_without_a_network_the_message_says_what_to_do(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"We-Math/We-Math cannot be fetched .*, bring"):
        fetch_benchmark("wemath", tmp_path)


def test_what_is_not_as_published_does_not_appear(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = put_on_hub(hub, "ai2d", monkeypatch)
    monkeypatch.setitem(data_check._NUM_PUBLISHED, "ai2d", 3_088)
    with pytest.raises(DataError, match=r"not ai2d as published: .*/ai2d: has 4 questions, 3,088"):
        fetch_benchmark("ai2d", tmp_path)
    for path in (folder / "data").glob("test-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"ai2d on the hub at main has no data/test-\*\.parquet"):
        fetch_benchmark("ai2d", tmp_path, "main")
    assert not (tmp_path / "ai2d").exists()


@pytest.mark.parametrize("full", ["the hub's cache", "data"])
def test_a_full_disk_leaves_nothing_behind(
    full: str, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put_on_hub(hub, "ai2d", monkeypatch)

    def fill(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if full == "data":
        monkeypatch.setattr(picture_fetch.shutil, "copyfile", fill)
    else:
        monkeypatch.setattr("huggingface_hub.snapshot_download", fill)
    with pytest.raises(OutputError, match=rf"No space left on the disk .*{full}"):
        fetch_benchmark("ai2d", tmp_path / "data")
    assert list((tmp_path / "data").glob("*")) == []
    monkeypatch.undo()


SCRIPT = """
import sys
from pathlib import Path
from evaluators.picture_fetch import write_pictures
from nan_merge.publish import publish_folder
with publish_folder(Path(sys.argv[1])) as staging:
    write_pictures("ai2d", staging)
"""


def test_killed_half_way_it_goes_on_from_the_files_that_are_whole(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = put_on_hub(hub, "ai2d", monkeypatch)
    first = folder / "data" / "test-00000-of-00001.parquet"
    second = first.with_name("test-00001-of-00002.parquet")
    shutil.copy(first, second)
    names = [f"lmms-lab/ai2d/data/{each.name}" for each in (first, second)]
    hub.stalled.add(names[1])
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    target = tmp_path / "data" / "ai2d"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(target)], env=environment)
    try:
        deadline = time.monotonic() + 30
        whole = tmp_path.glob(f"home/*/snapshots/*/data/{first.name}")
        while not (any(whole) and hub.sent[names[1]]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
            whole = tmp_path.glob(f"home/*/snapshots/*/data/{first.name}")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not target.exists()
    hub.stalled.clear()
    hub.sent.clear()
    monkeypatch.setitem(data_check._NUM_PUBLISHED, "ai2d", 8)
    fetch_benchmark("ai2d", target.parent)
    assert hub.sent[names[0]] == 0 and hub.sent[names[1]] == second.stat().st_size
    assert check_data("ai2d", target).all_problems() == []
    assert [each.name for each in target.parent.iterdir()] == ["ai2d"]


def _zip(path: Path, folder: Path, start: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for picture in sorted(folder.rglob("*.png")):
            archive.write(picture, start + str(picture.relative_to(folder)))
        archive.writestr("images/geo3k/test/0.png", b"of another test")
        archive.writestr("../outside.png", b"never unpacked")


def test_geoqa_from_its_two_places(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "source"
    made.write_geoqa(source, 4)
    _zip(hub.root / "Luckyjhg/Geo170K/images.zip", source, "images/")
    monkeypatch.setitem(data_check._NUM_PUBLISHED, "geoqa", 4)
    address = source.as_uri()
    with pytest.raises(DataError, match=r"SHA-256 is not that .* convert-geoqa test\.pk DIR/geoqa"):
        fetch_benchmark("geoqa", tmp_path / "data", address=address)
    for name in ("test_questions.jsonl", "test_answers.jsonl"):
        digest = hashlib.sha256((source / name).read_bytes()).hexdigest()
        monkeypatch.setitem(KNOWN_FILES, ("geoqa", name), ("sha256", digest))
    target = fetch_benchmark("geoqa", tmp_path / "data", address=address)
    report = check_data("geoqa", target)
    assert report.all_problems() == [] and report.is_known is True
    assert sorted(str(each.relative_to(target)) for each in target.rglob("*.*")) == [
        *(f"test/{number}.png" for number in range(4)), "test_answers.jsonl", "test_questions.jsonl"
    ]  # fmt: skip
    for name in ("0.png", "3.png"):
        assert (target / "test" / name).read_bytes() == (source / "test" / name).read_bytes()
    assert not (tmp_path / "data" / "outside.png").exists()


def test_damaged_archives_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made.write_geoqa(tmp_path / "source", 2)
    path = tmp_path / "images.zip"
    _zip(path, tmp_path / "source", "")
    names = ["test/0.png", "test/1.png"]
    with pytest.raises(DataError, match=r"images\.zip: lacks 1 of 3 images, first test/7\.png"):
        take_pictures(path, [*names, "test/7.png"], tmp_path / "out")
    with pytest.raises(DataError, match=r"'\.\./outside\.png' is not inside"):
        take_pictures(path, ["../outside.png"], tmp_path / "out")
    monkeypatch.setattr(picture_fetch, "MAX_BYTES", 20)
    with pytest.raises(DataError, match=r"test/0\.png has more than 20 bytes"):
        take_pictures(path, names, tmp_path / "out")
    monkeypatch.undo()
    content = bytearray(path.read_bytes())
    content[60:90] = b"?" * 30  # inside the first picture
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.zip: is damaged .*run the same command again"):
        take_pictures(path, names, tmp_path / "out")
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is damaged or no archive"):
        take_pictures(path, names, tmp_path / "out")


def test_an_answer_of_the_web_that_breaks_off_is_named(monkeypatch: pytest.MonkeyPatch):
    def break_off(*_args: object, **_kwargs: object):
        raise IncompleteRead(b"half", 4)

    monkeypatch.setattr("urllib.request.urlopen", break_off)
    with pytest.raises(DataError, match=r"https://example\.org/questions cannot be fetched"):
        download("https://example.org/questions")
