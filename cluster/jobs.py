"""Ray jobs: send a command with its files to a cluster, follow its log, learn how it ended.

The job runs on the cluster with the cluster's own Ray and packages; this side speaks HTTP to the
cluster's dashboard and needs no Ray of the same version.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nan_merge.errors import MissingExtraError, NanMergeError

PROBE_SECONDS = 5.0
DASHBOARD_PORT = 8265
OLDEST_RAY = (2, 40)  # as in the extra `cluster` of pyproject.toml
MAX_LOST_CONNECTIONS = 5  # one after the other, without a word of the log between them
_ENVIRONMENT_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# Modules of Ray that tell every upload and connection on standard error.
_TALKERS = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
)
_TOKEN_FILE = "~/.ray/auth_token"
_TOKEN_HELP = (
    "Give its token to this machine: what `ray get-auth-token` prints there, in RAY_AUTH_TOKEN "
    f"here, or in {_TOKEN_FILE}, or in a file that RAY_AUTH_TOKEN_PATH names."
)


@dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes:
        status: Ray's word for it: SUCCEEDED, FAILED or STOPPED.
        exit_code: Of its command; None if it had none, e.g. because it never started.
        message: What Ray says about it.
    """

    status: str
    exit_code: int | None
    message: str


class JobClient:
    """Jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: URL of the cluster's dashboard, such as ``http://head:8265``; the scheme and
                the port may be left out.

        Raises:
            NanMergeError: If nothing answers there, it wants a token, or its Ray is too old.
            MissingExtraError: If Ray is not installed here.
        """
        self.url = dashboard_url(address)
        _probe(self.url)
        with _explained(self.url), _no_other_address():
            self._ray: Any = _import_client()(self.url, headers=_token_header())
            # The client asks for it and has no public name for it.
            self.ray_version: str = self._ray._server_ray_version
        if _numbers(self.ray_version) < OLDEST_RAY:
            raise NanMergeError(
                f"The cluster at {self.url} runs Ray {self.ray_version}, and nan-merge needs "
                f"{'.'.join(map(str, OLDEST_RAY))} or newer there. Update the cluster's image."
            )

    def submit(self, command: str, folder: Path, label: str) -> str:
        """Send a command; its working directory there is a copy of ``folder``.

        Args:
            command: For the cluster's shell.
            folder: Everything in it travels, so let it hold little.
            label: What to call the job in Ray's dashboard.

        Returns:
            The job's id.
        """
        with _explained(self.url):
            return self._ray.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": str(folder)},
                metadata={"job_name": label},
            )

    def follow(self, job: str, write: Callable[[str], None]) -> JobEnd:
        """Pass on what the job prints, from its beginning, until it ends.

        Raises:
            NanMergeError: If the cluster cannot be reached any more; the job may still run.
        """
        seen = losses = 0

        async def tail() -> None:
            nonlocal seen
            position = 0  # a log is always sent from its beginning
            async for text in self._ray.tail_job_logs(job):
                new = text[max(0, seen - position) :]
                position += len(text)
                if new:
                    write(new)
                    seen = position

        while True:
            before = seen
            try:
                with _explained(self.url):
                    asyncio.run(tail())
                    end = self._end_of(job)
                if end is not None:
                    return end
            except NanMergeError:
                losses = 0 if seen > before else losses + 1
                if losses > MAX_LOST_CONNECTIONS:
                    raise
            time.sleep(1)

    def _end_of(self, job: str) -> JobEnd | None:
        details = self._ray.get_job_info(job)
        if not details.status.is_terminal():
            return None
        return JobEnd(details.status.value, details.driver_exit_code, details.message or "")


def dashboard_url(address: str) -> str:
    """``http://host:port`` of an address whose scheme and port may be missing.

    >>> dashboard_url("head.example")
    'http://head.example:8265'

    Raises:
        NanMergeError: If it is no address of a dashboard.
    """
    text = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(text)
        port = parts.port or (443 if parts.scheme == "https" else DASHBOARD_PORT)
    except ValueError as error:
        raise NanMergeError(f"--address {address!r} is no URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or address in ("auto", "local"):
        raise NanMergeError(
            f"--address {address!r} is not the URL of a Ray dashboard. Jobs are sent to one, such "
            "as http://HEAD:8265; to join the cluster that this machine belongs to, use "
            "`nan-merge run CONFIG cluster.address=auto`."
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _import_client() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise MissingExtraError(
            "Sending a run to a cluster needs Ray here too: pip install 'nan-merge[cluster]'"
        ) from error
    for name in _TALKERS:
        logging.getLogger(f"{ray.__name__}.{name}").setLevel(logging.WARNING)
    return JobSubmissionClient


def _token_header() -> dict[str, str]:
    """The token of this machine, from where Ray looks for one, as Ray sends it.

    Ray's own client sends one only where RAY_AUTH_MODE says so, which a machine that starts no
    Ray has no other reason to set. It leaves a header alone that is there, even an empty one.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN_FILE).expanduser()
    if not token and file.is_file():
        token = file.read_text(encoding="utf-8")
    return {"Authorization": f"Bearer {token.strip()}" if token.strip() else ""}


@contextmanager
def _no_other_address() -> Generator[None]:
    """Hide the variables that Ray prefers to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in _ENVIRONMENT_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _probe(url: str) -> None:
    """Ask whether anything listens there; requests themselves would wait without end."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise NanMergeError(
            f"Nothing answers at {url} ({error}). Check --address: it is the dashboard of the "
            "cluster's head node, port 8265 unless you changed it. A dashboard that listens on the "
            "head's loopback address alone is reached through a tunnel: "
            "`ssh -L 8265:127.0.0.1:8265 HEAD`, then --address http://127.0.0.1:8265."
        ) from error


@contextmanager
def _explained(url: str) -> Generator[None]:
    """Turn what Ray's client raises into one message with a mend."""
    try:
        yield
    except NanMergeError:
        raise
    except Exception as error:  # of many kinds: Ray's, aiohttp's, those of requests
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if type(error).__name__ == "AuthenticationError":
            refused = "refuses this machine's" if "failed" in reason else "wants an"
            raise NanMergeError(
                f"The cluster at {url} {refused} authentication token. {_TOKEN_HELP}"
            ) from error
        raise NanMergeError(
            f"The cluster at {url} did not do what was asked: {reason}. Check that it is a Ray "
            "dashboard and still runs."
        ) from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
