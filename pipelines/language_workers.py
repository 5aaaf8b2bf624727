"""What a model actor of a language model needs of its node, where the run file does not say."""

from __future__ import annotations

import os

from pipelines.cluster_config import Cluster
from pipelines.language_config import BackendSpec


def with_model_resources(cluster: Cluster, backend: BackendSpec) -> Cluster:
    """A cluster section whose models own what they compute on.

    A model on GPUs takes as many as it is spread over; one on a CPU of a machine of its own takes
    all cores, because two large models at once would wait for the same memory.
    """
    wanted = cluster.evaluate
    changes: dict[str, float] = {}
    if "num_gpus" not in wanted.model_fields_set and backend.tensor_parallel > 1:
        changes["num_gpus"] = backend.tensor_parallel
    if "num_cpus" not in wanted.model_fields_set and cluster.address == "local":
        changes["num_cpus"] = cluster.num_workers or os.cpu_count() or 1
    return cluster.model_copy(update={"evaluate": wanted.model_copy(update=changes)})
