"""Start a local Ray or join a cluster. Only a pipeline opens a session; nothing else starts Ray."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from cluster.reaper import ending_with_this_process, ray_agents
from cluster.task_options import MAX_RETRIES, TaskOptions
from nan_merge.errors import MissingExtraError, NanMergeError

PROBE_SECONDS = 5.0
LOOPBACK = "127.0.0.1"
_TOKEN_HINT = (
    "If that cluster asks for an authentication token, give its own to this machine, in "
    "RAY_AUTH_TOKEN or the file that RAY_AUTH_TOKEN_PATH names (`ray get-auth-token` prints it "
    "there)."
)

# Of the session that is open; Ray's own connection is one per process, too.
_limit: int | None = None


@contextmanager
def ray_session(
    address: str = "local", num_cpus: int | None = None, *, dashboard: bool = False
) -> Generator[int]:
    """Yield how many workers may run at once; stop Ray at the end if it was started here.

    A local Ray listens on the loopback address alone, keeps its token authentication, starts no
    dashboard unless asked, and ends with this process, however that ends.

    Args:
        address: "local", or "auto" or another address that `ray.init` takes.
        num_cpus: Most workers at once; one per CPU of the machine or cluster if None.
        dashboard: Start Ray's dashboard with a local Ray.

    Raises:
        MissingExtraError: If Ray is not installed.
        NanMergeError: If Ray cannot be started, or there is no cluster at the address.
    """
    global _limit
    if address.startswith("ray://"):
        raise NanMergeError(
            f"{address} is an address of Ray Client, whose driver stays outside of the cluster and "
            "away from its storage. Use `nan-merge submit CONFIG --address http://HEAD:8265`, or "
            "run on a node of the cluster with `cluster.address=auto`."
        )
    local = address == "local"
    ray = _import_ray(local)
    if not local:
        _probe(address)
    _connect(ray, address, num_cpus, dashboard)
    with ExitStack() as stack:
        stack.enter_context(ending_with_this_process(ray_agents() if local else ()))
        stack.callback(ray.shutdown)
        try:
            # A local Ray has no more CPUs than these; a cluster has as many as it has.
            _limit = None if local else num_cpus
            available = int(ray.cluster_resources().get("CPU", 1))
            yield min(available, num_cpus or available)
        finally:
            _limit = None


def worker_limit() -> int | None:
    """Most tasks that the open session may have under way; None if Ray itself sees to it."""
    return _limit


def num_cpus() -> int:
    """CPU cores that the nodes of the open session have now, all together."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def has_gpus() -> bool:
    """Whether any node of the open session has a GPU."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0))


def why_no_place(options: TaskOptions) -> str:
    """Why no node of the open session could ever run such a task; empty if one could.

    Ray itself would wait for such a node without end.
    """
    import ray

    wanted = options.demand()
    nodes: list[dict[str, float]] = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
        return ""
    have = sorted({_list({key: node.get(key, 0) for key in wanted}) for node in nodes})
    return f"one needs {_list(wanted)}, and the nodes have {'; '.join(have) or 'gone'}"


def _list(resources: dict[str, float]) -> str:
    return ", ".join(f"{value:g} {name}" for name, value in resources.items())


def _import_ray(local: bool) -> Any:
    # Ray says by default how it is used to its makers, and speaks over the driver's progress bars.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # By default Ray starts a task without end whose worker it stopped for want of memory.
    os.environ.setdefault("RAY_task_oom_retries", str(MAX_RETRIES))
    if local:
        # Ray's own switch for "this machine only": every port is then bound to the loopback. It
        # is read when Ray is first imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "Running on workers needs Ray: pip install 'nan-merge[cluster]'"
        ) from error
    return ray


def _connect(ray: Any, address: str, num_cpus: int | None, dashboard: bool) -> None:
    local = address == "local"
    try:
        ray.init(
            address=address,
            num_cpus=num_cpus if local else None,
            include_dashboard=dashboard if local else None,
            dashboard_host=LOOPBACK,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # a plain Exception is what Ray raises if a node does not start
        with suppress(Exception):
            ray.shutdown()
        raise NanMergeError(_why_not(address, error)) from error


def _why_not(address: str, error: Exception) -> str:
    reason = (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(". ")
    if address == "local":
        return (
            f"Ray could not start on this machine: {reason}. Often the machine is too busy or "
            "short of memory: run the same command again, with fewer workers "
            "(`cluster.num_workers=1`) if it happens again."
        )
    return (
        f"Cannot join Ray at {address!r}: {reason}. Start a cluster there, or use "
        f"`cluster.address=local`. {_TOKEN_HINT}"
    )


def _probe(address: str) -> None:
    """Ask whether anything listens at the address: Ray itself would wait for minutes."""
    named = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    endpoint = _endpoint(named)
    if endpoint is None:
        return
    try:
        socket.create_connection(endpoint, PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise NanMergeError(
            f"No Ray cluster answers at {named!r} ({error}). Check `cluster.address` and that "
            "`ray start --head` runs there, or use `cluster.address=local`."
        ) from error


def _endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of ``host:port``; None for any other address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return None
    return host.strip("[]"), int(port)
