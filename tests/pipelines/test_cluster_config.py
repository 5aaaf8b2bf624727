"""The section `cluster:` of a run file."""

from pathlib import Path

import pytest

from nan_merge.errors import ConfigError
from nan_merge.yaml_config import load_config
from pipelines.cluster_config import Cluster


def load(tmp_path: Path, text: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return load_config(path, Cluster)


def test_defaults_ask_for_a_core_each_and_gpus_where_there_are_some():
    cluster = Cluster()
    assert cluster.stall_seconds == 1800
    assert not cluster.dashboard
    wanted = {
        name: (found.num_cpus, found.num_gpus, found.memory, found.resources)
        for name in ("statistics", "merge", "evaluate", "train")
        if (found := getattr(cluster, name))
    }
    assert wanted == {
        "statistics": (1, 0, None, {}),
        "merge": (1, "auto", None, {}),
        "evaluate": (1, "auto", None, {}),
        "train": (1, 0, None, {}),
    }


def test_every_stage_has_resources_of_its_own(tmp_path: Path):
    text = "merge: {num_cpus: 4, num_gpus: 0.5, memory: 2000000000, resources: {near_disk: 0.1}}"
    merge = load(tmp_path, text).resources_of("merge")
    assert (merge.num_cpus, merge.num_gpus, merge.memory) == (4, 0.5, 2_000_000_000)
    assert merge.resources == {"near_disk": 0.1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge: {num_cpu: 4}", r"merge.num_cpu: unknown key.*did you mean 'num_cpus'"),
        ("statistic: {}", r"statistic: unknown key.*did you mean 'statistics'"),
        ("merge: {num_gpus: atuo}", r"merge.num_gpus"),
        ("merge: {num_gpus: -1}", r"merge.num_gpus"),
        ("merge: {num_cpus: 0}", r"merge.num_cpus"),
        ("stall_seconds: 0", r"stall_seconds"),
        ("merge: {resources: {GPU: 1}}", r"GPU is no custom resource; use `num_gpus`"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text)
