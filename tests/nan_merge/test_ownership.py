"""An owner file has one holder; others on other machines take it over only when it is stale."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from nan_merge.errors import OutputError
from nan_merge.ownership import (
    STALE_SECONDS,
    OwnedElsewhere,
    Owner,
    age_seconds,
    holding,
    is_alive,
    read_owner,
    this_machine,
)

ELSEWHERE = Owner(host="far", machine="another", pid=7, token="theirs", begun=0.0)


def leave(path: Path, owner: Owner, seconds_ago: float) -> None:
    path.write_text(json.dumps(asdict(owner)))
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


def test_a_second_holder_is_told_who_holds_it(tmp_path: Path):
    path = tmp_path / "owner"
    with holding(path):
        owner = read_owner(path)
        assert owner is not None
        assert (owner.pid, owner.machine) == (os.getpid(), this_machine())
        assert is_alive(path)
        with pytest.raises(OwnedElsewhere, match=f"process {os.getpid()} on "), holding(path):
            pass
    assert not path.exists()
    with holding(path):
        pass


def test_what_a_dead_process_of_this_machine_left_is_free_at_once(tmp_path: Path):
    path = tmp_path / "owner"
    dead = Owner("here", this_machine(), 2**22 + 1, "theirs", 0.0)
    leave(path, dead, 1)
    assert not is_alive(path)
    with holding(path):
        pass


def test_a_living_holder_on_another_machine_keeps_it(tmp_path: Path):
    path = tmp_path / "owner"
    leave(path, ELSEWHERE, 20)
    assert is_alive(path)
    assert age_seconds(path) == pytest.approx(20, abs=2)
    with (
        pytest.raises(OwnedElsewhere, match="process 7 on far, last sign of life 2"),
        holding(path),
    ):
        pass
    assert read_owner(path) == ELSEWHERE


def test_a_holder_that_gives_no_sign_of_life_is_followed(tmp_path: Path):
    path = tmp_path / "owner"
    leave(path, ELSEWHERE, STALE_SECONDS + 5)
    assert not is_alive(path)
    with holding(path) as held:
        assert read_owner(path) == held.owner


def test_a_holder_that_was_followed_ends_and_leaves_the_file(tmp_path: Path):
    path = tmp_path / "owner"
    with holding(path) as held:
        held.check()
        path.write_text(json.dumps(asdict(ELSEWHERE)))
        for _ in range(100):
            time.sleep(0.05)
            if not held._renewing.is_alive():
                break
        with pytest.raises(OutputError, match=r"Another run took .* over"):
            held.check()
    assert read_owner(path) == ELSEWHERE


def test_nonsense_in_an_owner_file_holds_nobody_up(tmp_path: Path):
    path = tmp_path / "owner"
    path.write_text("{")
    assert not is_alive(path)
    with holding(path):
        pass


def test_its_time_is_renewed(tmp_path: Path):
    path = tmp_path / "owner"
    with holding(path):
        os.utime(path, (0, 0))
        for _ in range(100):
            time.sleep(0.05)
            if path.stat().st_mtime > 0:
                return
    raise AssertionError("it was not")
