import os
from collections.abc import Iterator

import pytest

from cluster.session import ray_session

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # before any test module imports Ray


@pytest.fixture(scope="module")
def ray_two_cpus() -> Iterator[int]:
    """A local Ray with two workers, started once for all tests of a file."""
    with ray_session("local", 2) as num_cpus:
        yield num_cpus
