"""The autoscaler's files against Ray's own schema and checks. Nothing is started."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

FOLDER = Path(__file__).parents[2] / "configs" / "cluster"
FILES = ["ray-aws.yaml", "ray-on-premise.yaml"]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_ray_takes_the_file(config: dict[str, Any]):
    validate_config(prepare_config(deepcopy(config)))


def test_a_misspelt_key_would_be_found(config: dict[str, Any]):
    with pytest.raises(ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config({**config, "idle_timeout_minuts": 5}))


def test_the_dashboard_listens_on_the_loopback_and_tokens_stay_on(config: dict[str, Any]):
    head = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert len(head) == 1
    assert "--dashboard-host=127.0.0.1" in head[0]
    assert "0.0.0.0" not in yaml.safe_dump(config)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/merger/.ray/auth_token" in config["file_mounts"]


def test_every_node_sees_the_shared_folder(config: dict[str, Any]):
    assert "--volume /shared:/shared" in config["docker"]["run_options"]


def test_no_node_on_aws_has_a_public_address():
    assert load("ray-aws.yaml")["provider"]["use_internal_ips"] is True


def test_aws_has_a_head_that_computes_nothing_and_workers_of_both_kinds():
    config = load("ray-aws.yaml")
    types = config["available_node_types"]
    assert set(types) == {"head", "cpu-worker", "gpu-worker"}
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert all(types[name]["min_workers"] == 0 for name in ("cpu-worker", "gpu-worker"))


def test_addresses_on_premise_are_those_kept_for_documentation():
    provider = load("ray-on-premise.yaml")["provider"]
    addresses = [provider["head_ip"], *provider["worker_ips"]]
    assert all(address.startswith("192.0.2.") for address in addresses)
    assert load("ray-on-premise.yaml")["max_workers"] == len(provider["worker_ips"])


def test_the_head_on_aws_installs_where_its_user_may_write_and_looks_there():
    config = load("ray-aws.yaml")
    (install,) = config["head_setup_commands"]
    assert install.startswith('pip install --target "$HOME/aws" ')
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert start.startswith('PYTHONPATH="$HOME/aws" ray start --head ')
