"""A real `mlflow server` in a process of its own, with authentication where it is installed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

USER, PASSWORD = "admin", "correct-horse-battery"
START_SECONDS = 240
HAS_AUTHENTICATION = find_spec("flask_wtf") is not None
AUTHENTICATION = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True)
class Server:
    """A server that runs; `url` has a login in it if it wants one."""

    host: str
    folder: Path

    @property
    def url(self) -> str:
        login = f"{USER}:{PASSWORD}@" if HAS_AUTHENTICATION else ""
        return f"http://{login}{self.host}"

    @property
    def bare_url(self) -> str:
        return f"http://{self.host}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start a server over SQLite and a folder of artifacts, which it proxies, and end it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    if HAS_AUTHENTICATION:
        (folder / "auth.ini").write_text(AUTHENTICATION.format(folder=folder, user=USER))
        command += ["--app-name", "basic-auth"]
        environment |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test",
        }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:
        _wait(port, process, folder / "server.log")
        yield Server(f"127.0.0.1:{port}", folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
        ):
            return
        time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")
