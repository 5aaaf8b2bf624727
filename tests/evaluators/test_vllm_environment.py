import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluators.backends import vllm_environment
from evaluators.backends.vllm_environment import (
    engine_variables,
    environment,
    last_words,
    new_engine_folder,
    output_to,
    require_vllm,
)
from nan_merge.errors import MissingExtraError

LOG = """\
(EngineCore pid=24) INFO 11-24 20:39:20 [core.py:1] Initializing
(Worker pid=25) ERROR 11-24 20:39:47 [multiproc.py:953] WorkerProc failed to start.
(Worker pid=25) ERROR 11-24 20:39:47 [multiproc.py:953] Traceback (most recent call last):
(Worker pid=25) ERROR 11-24 20:39:47 [multiproc.py:953]   File "loader.py", line 5, in load
(Worker pid=25) ERROR 11-24 20:39:47 [multiproc.py:953] ValueError: Following weights were not
(Worker pid=25) ERROR 11-24 20:39:47 [multiproc.py:953]   initialized: {'model.norm.weight'}
(EngineCore pid=24) INFO 11-24 20:39:50 [multiproc.py:486] all workers exited
(EngineCore pid=24) ERROR 11-24 20:39:50 [core.py:1510] Exception: WorkerProc initialization failed
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_last_words_are_the_first_error(tmp_path: Path):
    log = tmp_path / "engine.log"
    log.write_text(LOG)
    words = "ValueError: Following weights were not\n  initialized: {'model.norm.weight'}"
    assert last_words(log) == words
    log.write_text("ValueError: of an earlier engine\n" + LOG)
    assert last_words(log, start=33) == words


def test_without_an_error_last_words_are_the_end_of_the_log(tmp_path: Path):
    log = tmp_path / "engine.log"
    log.write_bytes(b"\n".join(b"line %d" % n for n in range(40)) + b"\n\xff\n")
    assert last_words(log).splitlines() == [*(f"line {n}" for n in range(29, 40)), "\ufffd"]
    log.write_text("")
    assert last_words(log) == last_words(tmp_path / "nowhere") == "It said nothing."


OFFLINE = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE")


def test_an_engine_is_told_to_stay_offline_and_to_report_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", *OFFLINE):
        monkeypatch.delenv(name, raising=False)
    found = engine_variables(3, tmp_path)
    assert {found[name] for name in OFFLINE} == {"1"}
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "3" and found["VLLM_HOST_IP"] == "127.0.0.1"
    assert found["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0"  # all cores are this process's


def test_what_the_user_set_goes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "9")
    assert "VLLM_CPU_KVCACHE_SPACE" not in engine_variables(3, tmp_path)


def test_a_share_of_the_cores_is_not_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert engine_variables(3, tmp_path)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in engine_variables(3, tmp_path)


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NAN_MERGE_TEST_ONE", "before")
    monkeypatch.delenv("NAN_MERGE_TEST_TWO", raising=False)
    with environment({"NAN_MERGE_TEST_ONE": "in", "NAN_MERGE_TEST_TWO": "in"}):
        assert os.environ["NAN_MERGE_TEST_ONE"] == os.environ["NAN_MERGE_TEST_TWO"] == "in"
    assert os.environ["NAN_MERGE_TEST_ONE"] == "before"
    assert "NAN_MERGE_TEST_TWO" not in os.environ


def test_what_children_print_goes_to_the_file_for_good(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = tmp_path / "log"
    code = "import time; print('early', flush=True); time.sleep(1); print('late')"
    with path.open("ab") as file, output_to(file.fileno()):
        child = subprocess.Popen([sys.executable, "-c", code])
        os.write(2, b"mine\n")
    os.write(1, b"not there\n")
    assert child.wait(timeout=30) == 0
    assert sorted(path.read_text().split()) == ["early", "late", "mine"]
    assert capfd.readouterr().out == "not there\n"


def test_without_vllm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm_environment, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"nan-merge\[vllm\].*backend: transformers"):
        require_vllm()


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(timeout=30)
    left, alive = (tmp_path / f"nan-merge-engine-{pid}-x" for pid in (ended.pid, os.getppid()))
    for folder in (left, alive):
        folder.mkdir()
    found = new_engine_folder()
    assert sorted(tmp_path.iterdir()) == sorted([alive, found])
