"""The KubeRay job against a part of KubeRay's own schema, and what the schema cannot say."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError, validate

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "cluster" / "kuberay-rayjob.yaml"
SCHEMA = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text(encoding="utf-8")))


@pytest.fixture
def job(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == "RayJob"]
    return deepcopy(found)  # without what YAML's anchors share


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_schema_takes_it(job: dict[str, Any]):
    validate(job, SCHEMA)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("spec", "entrypoints"),
        ("spec.rayClusterSpec.workerGroupSpecs.0", "minReplica"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0", "volumeMount"),
    ],
)
def test_a_misspelt_key_would_be_found(job: dict[str, Any], path: str, key: str):
    place: Any = job
    for part in path.split("."):
        place = place[int(part) if part.isdigit() else part]
    place[key] = 1
    with pytest.raises(ValidationError, match=key):
        validate(job, SCHEMA)


def test_ray_is_the_version_of_the_lock(job: dict[str, Any]):
    lock = (ROOT / "requirements" / "quickstart.lock").read_text()
    (version,) = re.findall(r"(?m)^ray==(\S+)$", lock)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version


def test_tokens_stay_on_and_nothing_is_reached_from_outside(job: dict[str, Any]):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]


def test_the_groups_are_a_head_that_computes_nothing_cpu_and_gpu_workers(job: dict[str, Any]):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["cpu", "gpu"]
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods(job)]
    assert gpus == [None, None, "1"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_all_pods_run_one_image_without_privileges_over_the_same_storage(job: dict[str, Any]):
    for pod in pods(job):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000  # as in the Dockerfile
        (container,) = pod["containers"]
        assert container["image"] == "nan-merge:0.1.0"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shared"] == "/shared"
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_storage_is_claimed_for_many_writers(documents: list[dict[str, Any]]):
    claim, job = documents
    assert claim["kind"] == "PersistentVolumeClaim"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {volume["name"]: volume for volume in pods(job)[0]["volumes"]}
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_driver_is_the_command_line_on_the_file_that_is_mounted(job: dict[str, Any]):
    assert job["spec"]["entrypoint"] == "nan-merge run /config/run.yaml cluster.address=auto"
