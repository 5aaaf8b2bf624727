"""One writer for a folder, whatever dies: a lock on this machine, an owner file between machines.

A lock of the system (flock) dies with its process, but on network storage it may hold on one
machine only. So the locked file also says who holds it, and its time is renewed for as long as the
holder lives. Another machine takes the file over when it was not renewed for `STALE_SECONDS`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from nan_merge.errors import OutputError

RENEW_SECONDS, STALE_SECONDS = 10.0, 60.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems that cannot lock


@dataclass(frozen=True)
class Owner:
    """Who writes to a folder.

    Attributes:
        host: Name of its machine, for people.
        machine: Id of its machine, boot and process namespace: processes that share it see each
            other's locks and numbers.
        pid: Its process.
        token: Unique to this holding.
        begun: When it began, in seconds since 1970.
    """

    host: str
    machine: str
    pid: int
    token: str
    begun: float


class OwnedElsewhere(Exception):
    """Somebody else holds the file.

    Attributes:
        owner: Who; None if it cannot be read.
        age_seconds: How long ago they gave a sign of life.
    """

    def __init__(self, owner: Owner | None, age_seconds: float) -> None:
        super().__init__(owner, age_seconds)
        self.owner, self.age_seconds = owner, age_seconds

    def __str__(self) -> str:
        if self.owner is None:
            return "another process"
        seen = f", last sign of life {self.age_seconds:.0f} s ago" if self.age_seconds > 2 else ""
        return f"process {self.owner.pid} on {self.owner.host}{seen}"


class Holding:
    """A held owner file."""

    def __init__(self, path: Path, descriptor: int, owner: Owner) -> None:
        self.path, self.descriptor, self.owner = path, descriptor, owner
        self._over = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="owner file")
        self._lost = False

    def begin(self) -> None:
        """Write who holds the file, and renew its time from now on."""
        content = json.dumps(asdict(self.owner)).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, content, 0)
        os.fsync(self.descriptor)
        self._renewing.start()

    def end(self) -> None:
        """Stop, and remove the file unless it is another's by now."""
        self._over.set()
        self._renewing.join()
        owner = read_owner(self.path)
        if owner is None or owner.token == self.owner.token:
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Refuse to go on if another machine took over, as it may if this one slept.

        Raises:
            OutputError: If it did.
        """
        if self._lost:
            raise OutputError(
                f"Another run took {self.path.parent} over, because this one gave no sign of life "
                f"for {STALE_SECONDS:.0f} s. This one ends; nothing is lost."
            )

    def _renew(self) -> None:
        # Look soon after the beginning: two machines may have begun in the same moment, and the
        # one that wrote last holds the file.
        wait = 1.0
        while not self._over.wait(wait):
            wait = RENEW_SECONDS
            with suppress(OSError):  # storage that is away for a moment is not a lost folder
                owner = read_owner(self.path)
                if owner is not None and owner.token != self.owner.token:
                    self._lost = True
                    return
                os.utime(self.path)


@contextmanager
def holding(path: Path) -> Generator[Holding]:
    """Hold an owner file until the block, or this process, ends.

    Raises:
        OwnedElsewhere: If somebody holds it who is alive, or may be.
        OSError: If it cannot be written.
    """
    descriptor = _open_locked(path)
    try:
        _refuse_other_machine(path)
        owner = Owner(
            socket.gethostname(), this_machine(), os.getpid(), uuid.uuid4().hex, time.time()
        )
        held = Holding(path, descriptor, owner)
        held.begin()
        try:
            yield held
        finally:
            held.end()
    finally:
        os.close(descriptor)  # and so unlock


def _open_locked(path: Path) -> int:
    while True:
        # Open for writing: NFS gives an exclusive lock for nothing less.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise OwnedElsewhere(read_owner(path), age_seconds(path)) from error
                raise
            _refuse_living_process(path, descriptor)
        with suppress(OSError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)  # the holder before removed it while this one opened it


def _refuse_living_process(path: Path, descriptor: int) -> None:
    """Where nothing can be locked, ask whether the process is there."""
    owner = read_owner(path)
    if owner is not None and owner.machine == this_machine() and owner.pid != os.getpid():
        with suppress(ProcessLookupError):
            os.kill(owner.pid, 0)
            os.close(descriptor)
            raise OwnedElsewhere(owner, age_seconds(path))


def _refuse_other_machine(path: Path) -> None:
    owner = read_owner(path)
    if owner is not None and owner.machine != this_machine():
        age = age_seconds(path)
        if age < STALE_SECONDS:
            raise OwnedElsewhere(owner, age)


def read_owner(path: Path) -> Owner | None:
    """Who an owner file names; None if there is no file or no sense in it."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def age_seconds(path: Path) -> float:
    """How long ago an owner file was renewed, by the clock of the storage that holds it."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".clock-") as probe:
            os.utime(probe.name)
            return max(0.0, Path(probe.name).stat().st_mtime - path.stat().st_mtime)
    except OSError:  # a folder that only may be read: the clocks had better agree
        with suppress(OSError):
            return max(0.0, time.time() - path.stat().st_mtime)
        return 0.0


def is_alive(path: Path) -> bool:
    """Whether somebody holds an owner file, as far as can be told from here; changes nothing."""
    owner = read_owner(path)
    if owner is None:
        return False
    if owner.machine != this_machine():
        return age_seconds(path) < STALE_SECONDS
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # The number of a process that ended may be another's by now.
    return age_seconds(path) < STALE_SECONDS


@cache
def this_machine() -> str:
    """Id of this machine since it was started; its name where the system tells none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()
