"""The CI jobs of docs/gate.md are YAML, their options exist, their script ends as it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from nan_merge.yaml_config import load_config
from pipelines.cli import app
from pipelines.config import RunConfig
from pipelines.gate_command import EXIT_CODES
from pipelines.gate_config import Gate
from tests.finished_runs import write_image_run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/gate.md").read_text(encoding="utf-8")
SECTION, GITHUB, GITLAB = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ANSWERS = "1" * 700 + "0" * 300


def commands(text: str) -> list[list[str]]:
    return [line.split() for line in re.findall(r"nan-merge (gate .*|run .*)", text)]


def test_the_section_shown_is_one_that_the_schema_takes():
    gate = Gate.model_validate(yaml.safe_load(SECTION)["gate"])
    assert gate.margins == {"gsm8k": 2.0}


def test_the_demonstrations_run_file_is_right():
    config = load_config(ROOT / "configs/gate.yaml", RunConfig)
    quickstart = load_config(ROOT / "configs/quickstart.yaml", RunConfig)
    assert config.experts == quickstart.experts  # trained once for both
    assert config.gate is not None
    assert {config.gate.candidate, config.gate.baseline} <= {each.name for each in config.merges}


def test_what_the_jobs_keep_is_what_their_gate_writes():
    steps = yaml.safe_load(GITHUB)["jobs"]["gate"]["steps"]
    scripts = " ".join(step.get("run", "") for step in steps)
    written = set(re.findall(r"--(?:junit|markdown|json) (\S+)", scripts))
    assert written == {"gate.xml", "gate.md", "gate.json"}
    comment = next(step for step in steps if step.get("name") == "Comment")
    assert "--body-file gate.md" in comment["run"] and "hashFiles('gate.md')" in comment["if"]
    job = yaml.safe_load(GITLAB)["merge-gate"]
    kept = {*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]}
    assert written <= kept
    assert job["allow_failure"] == {"exit_codes": [EXIT_CODES["inconclusive"]]}


@pytest.mark.parametrize("text", [GITHUB, GITLAB])
def test_the_jobs_call_options_that_there_are(text: str):
    assert yaml.safe_load(text)
    program: Any = get_command(app)
    gate = program.commands["gate"]
    known = {name for parameter in gate.params for name in parameter.opts}
    used = {word for command in commands(text) for word in command if word.startswith("--")}
    assert used == {"--junit", "--markdown", "--json"}
    assert used <= known


@pytest.mark.parametrize(("loss", "margin", "code"), [(5, 2, 0), (80, 2, 1), (0, 0, 2), (40, 2, 0)])
def test_the_step_that_decides_ends_with_the_gates_code(
    tmp_path: Path, loss: int, margin: int, code: int
):
    models = {"old": {"a": ANSWERS}, "new": {"a": "0" * loss + ANSWERS[loss:-25] + "1" * 25}}
    write_image_run(tmp_path / "run", models)
    content = {
        "name": "ci",
        "run_folder": "run",
        "experts": {"tasks": ["digits", "mnist"]},
        "evaluate": {"benchmarks": ["digits", "mnist"]},
        "gate": {"candidate": "new", "baseline": "old", "margin": margin, "resamples": 2000},
    }
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(content))
    steps = yaml.safe_load(GITHUB)["jobs"]["gate"]["steps"]
    script = next(step["run"] for step in steps if step.get("name") == "Decide")
    shim = tmp_path / "bin" / "nan-merge"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipelines.cli "$@"\n')
    shim.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{shim.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    has_warning = "the gate is inconclusive" in done.stdout
    assert has_warning == (loss == 40)  # 4 points lost, 2.5 won: nobody knows
    assert (tmp_path / "summary.md").read_text().startswith("### Gate: ")
