"""Start a local Ray or join a cluster. Only a pipeline opens a session; nothing else starts Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

from nan_merge.errors import MissingExtraError, NanMergeError


@contextmanager
def ray_session(address: str = "local", num_cpus: int | None = None) -> Generator[int]:
    """Yield the number of CPUs of a running Ray; stop it at the end if it was started here.

    A local Ray listens on the loopback address alone, keeps its token authentication, and starts
    no dashboard.

    Args:
        address: "local", or "auto" or another address that `ray.init` takes.
        num_cpus: For "local": how many CPUs to use; all if None.

    Raises:
        MissingExtraError: If Ray is not installed.
        NanMergeError: If there is no cluster at the address.
    """
    # Ray says by default how it is used to its makers, and speaks over the driver's progress bars.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local = address == "local"
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
    try:
        ray.init(
            address=address,
            num_cpus=num_cpus if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError) as error:
        raise NanMergeError(
            f"Cannot join Ray at {address!r}: {error}. Start a cluster there, or use "
            "`cluster.address=local`."
        ) from error
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()
