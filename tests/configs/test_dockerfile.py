"""The Dockerfile by its text, and by building in a folder that holds only what it copies."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "cluster" / "Dockerfile"
PACKAGES = ("nan_merge", "cluster", "evaluators", "pipelines")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of every line, continuations joined, comments left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", FILE.read_text(encoding="utf-8"))
    text = re.sub(r"\\\n\s*", " ", text)
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in text.splitlines())
        if name
    ]


def copied() -> list[tuple[str, str]]:
    """(source, target) of what comes from the repository."""
    found = []
    for name, rest in instructions():
        if name == "COPY" and "--from=" not in rest:
            *sources, target = rest.split()
            found += [(source, target) for source in sources]
    return found


def test_everything_that_it_copies_is_in_the_repository():
    assert copied()
    for source, _ in copied():
        assert (ROOT / source).exists(), source


def test_the_builder_is_shown_what_is_copied_and_nothing_else():
    lines = FILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line[0] == "!"} == {source for source, _ in copied()}


def test_every_package_of_the_project_is_in_the_image():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) == set(PACKAGES)
    assert set(packages) <= {source for source, _ in copied()}


def test_everything_installed_is_pinned_by_the_lock():
    runs = " ; ".join(rest for name, rest in instructions() if name == "RUN")
    installs = re.findall(r"pip install ([^;&|]*)", runs)
    assert [install.strip() for install in installs] == [
        '--index-url "$TORCH_INDEX_URL" "$(grep \'^torch==\' requirements/quickstart.lock)"',
        "-r requirements/quickstart.lock",
        "--no-deps --no-build-isolation .",
    ]
    lock = (ROOT / "requirements" / "quickstart.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ]+", line) for line in lock if line)
    assert len([line for line in lock if line.startswith("torch==")]) == 1


def test_the_build_tools_that_it_does_without_isolation_are_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lock = (ROOT / "requirements" / "quickstart.lock").read_text()
    for requirement in project["build-system"]["requires"]:
        name = re.split(r"[<>=!~]", requirement)[0]
        assert re.search(rf"(?m)^{name}==", lock), name


def test_the_python_is_the_projects():
    (python,) = re.findall(r"(?m)^ARG PYTHON=(\S+)", FILE.read_text())
    assert python.startswith("3.11-")


def test_it_does_not_run_as_root_and_keeps_token_authentication():
    final = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    users = [rest for name, rest in final if name == "USER"]
    assert users == ["1000:1000"]
    assert [name for name, _ in final].index("USER") > max(
        i for i, (name, _) in enumerate(final) if name == "RUN"
    )
    environment = " ".join(rest for name, rest in final if name == "ENV")
    assert "RAY_AUTH_MODE=token" in environment
    assert not [rest for name, rest in final if name == "EXPOSE"]


def test_nothing_of_the_image_is_secret_or_floating():
    text = FILE.read_text()
    assert "latest" not in text
    assert not re.search(r"(?i)password|secret|api_key", text)
    assert not [name for name, _ in instructions() if name == "ADD"]


@pytest.mark.parametrize(
    ("variant", "index", "words"),
    [("cpu", "", "VARIANT=cpu needs TORCH_INDEX_URL"), ("rocm", "", "VARIANT is cuda or cpu")],
)
def test_a_wrong_variant_ends_the_build(variant: str, index: str, words: str):
    (script,) = [rest for name, rest in instructions() if name == "RUN" and rest.startswith("case")]
    result = subprocess.run(
        ["sh", "-c", script],
        env={"VARIANT": variant, "TORCH_INDEX_URL": index, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert words in result.stderr


def test_what_is_copied_is_enough_to_build_the_package(tmp_path: Path):
    context = tmp_path / "context"
    for source, target in copied():
        if target.startswith("/"):
            continue  # into the final image, not for the build
        place = context / (source if target in ("./", "requirements/") else target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, place)
    command = [
        *("pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run([sys.executable, "-m", *command], cwd=context, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = ZipFile(wheel).namelist()
    for package in PACKAGES:
        wanted = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py")}
        assert wanted <= set(names)
    assert any(name.endswith("entry_points.txt") for name in names)
    assert not [name for name in names if name.endswith((".safetensors", ".lock"))]
