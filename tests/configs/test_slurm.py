"""The Slurm script in a dry run: `srun`, `scontrol` and `apptainer` are stand-ins that write down
how they were called. No Ray is started, because its end would stop every Ray of the machine.
"""

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "configs" / "cluster" / "slurm.sbatch"
STAND_INS = {
    "srun": """
        printf '%s\\n' "$(printf '%q ' "$@")" >> "$CALLS"
        case "$*" in
            *"hostname --ip-address"*) echo "10.0.0.7 fe80::1" ;;
            *) cp -p "$RAY_AUTH_TOKEN_PATH" "$CALLS.token"; echo "$RAY_AUTH_MODE" > "$CALLS.mode"
               exit "${EXIT_CODE:-0}" ;;
        esac""",
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on three nodes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "run.yaml").write_text("name: x\n")
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_ON_NODE": "16",
    }


def sbatch(job: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=job,
        cwd=Path(job["CALLS"]).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(job: dict[str, str]) -> list[list[str]]:
    return [shlex.split(line) for line in Path(job["CALLS"]).read_text().splitlines()]


def test_bash_can_parse_it():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True, timeout=60)


def test_it_asks_slurm_for_whole_nodes_with_one_task_each():
    asked = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --exclusive", "#SBATCH --ntasks-per-node=1"} <= set(asked)


def test_ray_starts_on_every_node_and_the_run_joins_it(job: dict[str, str]):
    result = sbatch(job, "run.yaml", "seed=1", "name=a b")
    assert result.returncode == 0, result.stderr
    address, ray = calls(job)
    assert address == [*("--nodes=1", "--ntasks=1", "--nodelist=node1", "hostname", "--ip-address")]
    separator = ray.index("--")
    assert ray[:separator] == [
        *("--nodes=3", "--ntasks=3", "--kill-on-bad-exit=0", "ray", "symmetric-run"),
        *("--address", "10.0.0.7:24321", "--min-nodes", "3", "--num-cpus", "16"),
    ]
    config = str(Path(job["CALLS"]).parent / "run.yaml")
    assert ray[separator + 1 :] == [
        *("nan-merge", "run", config, "cluster.address=10.0.0.7:24321", "seed=1", "name=a b")
    ]


def test_the_token_is_the_jobs_own_and_does_not_stay(job: dict[str, str]):
    sbatch(job, "run.yaml")
    copy = Path(job["CALLS"] + ".token")
    first = copy.read_text()
    assert len(first) == 64
    assert set(first) <= set("0123456789abcdef")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert Path(job["CALLS"] + ".mode").read_text().strip() == "token"
    assert not list(Path(job["CALLS"]).parent.glob(".ray-token*"))
    sbatch(job, "run.yaml")
    assert copy.read_text() != first


def test_the_exit_code_is_the_runs(job: dict[str, str]):
    assert sbatch({**job, "EXIT_CODE": "2"}, "run.yaml").returncode == 2


def test_the_image_runs_it_where_one_is_named(job: dict[str, str]):
    extra = {
        "NAN_MERGE_IMAGE": "/images/nan merge.sif",
        "SLURM_GPUS_ON_NODE": "4",
        "NAN_MERGE_SHARED": "/shared",
    }
    assert sbatch({**job, **extra}, "run.yaml").returncode == 0
    ray = calls(job)[1]
    begin = ray.index("apptainer")
    folder = str(Path(job["CALLS"]).parent)
    assert ray[begin : ray.index("ray")] == [
        *("apptainer", "exec", "--bind", folder, "--bind", folder, "--bind", "/shared", "--nv"),
        "/images/nan merge.sif",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "Usage: sbatch"), (("gone.yaml",), "There is no run file")],
)
def test_a_missing_run_file_is_told(job: dict[str, str], arguments: tuple[str, ...], words: str):
    result = sbatch(job, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
