"""plan, coefficients, inspect and verify as a user meets them: what they print and refuse."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipelines.cli import app
from tests.flaky_store import FlakyStore


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("nan_merge.estimate.PROBE_ELEMENTS", 1 << 14)
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{place}.w": torch.randn(30, 40, generator=generator) for place in range(3)}
    base["norm"] = torch.ones(7)
    for name, size in (("base", 0.0), ("maths", 0.1), ("code", 0.3)):
        (tmp_path / name).mkdir()
        tensors = {
            key: value + size * torch.randn(value.shape, generator=generator)
            for key, value in base.items()
        }
        save_file(tensors, tmp_path / name / "model.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "model.safetensors").write_bytes(bytes(range(256)) * 20)
    cut = (tmp_path / "code" / "model.safetensors").read_bytes()[:-1000]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(cut)
    recipe = {
        "base": "base", "models": ["maths", "code"], "method": "ties",
        "coefficients": {"source": "nan", "target": "task_vector"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def ok(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_plan_says_what_a_merge_would_do_and_cost(work: Path):
    text = ok("plan", "recipe.yaml", "out")
    assert "layers.*.w" in text
    # 3 models of 3 x 1200 + 7 float32 numbers, five times
    assert "ties over 2 models: reads 0.000 GB in 5 passes, writes 0.000 GB." in text
    for label in ("norms", "magnitudes", "thresholds", "signs", "merge"):
        assert f"│ {label} " in text
    assert "MiB of private memory in" in text
    assert "the method takes any piece of a tensor" in text
    assert "Time: about a second on idle cores, starting up apart. An estimate" in text
    assert "where out goes" in text
    assert text.endswith("Everything fits.\n")
    assert not (work / "out").exists()


def test_plan_without_out_says_that_the_disk_was_not_checked(work: Path):
    assert "Name OUT to check the disk" in ok("plan", "recipe.yaml", "method=task_arithmetic")


def test_plan_without_trial_work_says_that_the_time_is_unknown(work: Path, monkeypatch):
    monkeypatch.setattr("nan_merge.estimate.compute_costs", lambda _: {})
    text = ok("plan", "recipe.yaml")
    assert "Time: unknown, because the trial work, by which it is estimated, failed here.\n" in text


def test_plan_of_a_merge_that_is_there(work: Path):
    ok("merge", "recipe.yaml", "out")
    assert "out holds a merge of this recipe" in ok("plan", "recipe.yaml", "out")
    result = run("plan", "recipe.yaml", "out", "method.density=0.5")
    assert result.exit_code == 2
    assert "out holds another merge already (its recipe has another method)" in result.stderr


def test_plan_lists_every_problem(work: Path):
    models = "models=[maths, empty, noise, cut, mahts]"
    result = run("plan", "recipe.yaml", "maths", models)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: These models cannot be merged; 5 things must be mended")
    for words in (
        "empty holds no *.safetensors file. Is it the right folder?",
        "noise/model.safetensors is damaged: its header is longer than the file",
        "cut/model.safetensors is damaged: 1,000 bytes are missing at its end",
        "No checkpoint at mahts",
        "maths is, or holds, the input maths",
    ):
        assert words in result.stderr


def test_a_merge_goes_to_an_object_store_and_is_verified_there(work: Path, stores: Path):
    url = f"file://{work}/bucket/out"
    text = ok("plan", "recipe.yaml", url, "--staging", "scratch")
    assert f"is then sent to {url}, and removed here" in text
    assert not (work / "bucket").exists()
    text = ok("merge", "recipe.yaml", url, "--staging", "scratch")
    assert "send: done in" in text
    assert text.endswith(f"{url} is written.\n")
    ok("merge", "recipe.yaml", "out")
    there, here = work / "bucket" / "out", work / "out"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {
        p.name: p.read_bytes() for p in here.iterdir()
    }
    assert list((work / "scratch").iterdir()) == []
    assert f"{url} was merged before and is unchanged." in ok("merge", "recipe.yaml", url)
    assert f"{url} is whole: 4 tensors in 1 file, 14,428 bytes" in ok("verify", url)
    assert "Everything fits." in ok("plan", "recipe.yaml", url)
    for command in ("plan", "merge"):
        result = run(command, "recipe.yaml", url, "method.density=0.5")
        assert result.exit_code == 2
        assert f"{url} holds another merge already" in result.stderr


def test_staging_is_for_object_stores(work: Path):
    for command in ("plan", "merge"):
        result = run(command, "recipe.yaml", "out", "--staging", "scratch")
        assert result.exit_code == 2
        assert "--staging is for results in an object store, but out is a folder" in result.stderr


@pytest.fixture
def stores(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAN_MERGE_STORE_CACHE", str(work / "cache" / "stores"))
    FlakyStore.reset()
    return work / "cache" / "stores"


def test_the_plan_of_models_in_object_stores_reads_their_headers_alone(work: Path, stores: Path):
    memory = fsspec.filesystem("memory")
    header_bytes = weight_bytes = 0
    for name in ("base", "maths", "code"):
        content = (work / name / "model.safetensors").read_bytes()
        memory.pipe(f"/plan-{work.name}/{name}/model.safetensors", content)
        header_bytes += 8 + int.from_bytes(content[:8], "little")
        weight_bytes += len(content)
    url = f"flaky://plan-{work.name}"
    models = (f"base={url}/base", f"models=[{url}/maths, {url}/code]")
    text = ok("plan", "recipe.yaml", *models)
    assert FlakyStore.bytes_read == header_bytes + 3 * 8  # the headers' lengths are asked for first
    assert header_bytes < weight_bytes / 10
    assert "3 files (0.000 GB) are still in object stores: a merge copies them first" in text
    ok("merge", "recipe.yaml", "out", *models)
    FlakyStore.reset()
    assert "object stores" not in ok("plan", "recipe.yaml", *models)  # the copies are here now
    assert FlakyStore.reads == 0


def test_coefficients_are_those_of_the_merge(work: Path):
    text = ok("coefficients", "recipe.yaml", "--json", "c.json")
    ok("merge", "recipe.yaml", "out")
    manifest = json.loads((work / "out" / "merge_manifest.json").read_text())
    found = json.loads((work / "c.json").read_text())
    assert found["models"] == ["maths", "code"]
    for key in ("scope", "scale", "norms", "alpha", "coefficients"):
        assert found[key] == manifest[key]
    for name, value in manifest["coefficients"].items():
        assert f"{value:.6g}" in text
        assert name in text
    assert "Norms are of the task vectors." in text
    assert "Sum of the coefficients: 1." in text
    assert "magnitudes" not in text  # nothing is read but what coefficients need


def test_coefficients_by_layer_show_the_range_or_every_row(work: Path):
    by_layer = ("coefficients", "recipe.yaml", "coefficients.scope=layer")
    assert " to " in ok(*by_layer)
    text = ok(*by_layer, "--all")
    assert all(f"layers.{place}" in text for place in range(3))
    assert "Sums over the models: 1 to 1." in text


def test_nearly_uniform_coefficients_are_called_so(work: Path):
    shutil.copytree(work / "maths", work / "copy")
    arguments = ("coefficients", "recipe.yaml", "models=[maths, copy]")
    assert "in effect, uniform weighting" in ok(*arguments)
    assert "`target: task_vector` compares" not in ok(*arguments)  # it is that already
    weights = ok(*arguments, "coefficients=nan")
    assert "`target: task_vector` compares what was learned instead" in " ".join(weights.split())
    by_layer = ok(*arguments, "coefficients.scope=layer")
    assert "In every layer the coefficients lie within 1 % of each other" in by_layer


def test_coefficients_without_norms_read_nothing(work: Path):
    text = ok("coefficients", "recipe.yaml", "coefficients=[0.25, 0.5]")
    assert "0.25" in text
    assert "No norms were needed." in text
    assert "norms ..." not in text


def test_inspect_prints_tables_and_writes_what_is_asked_for(work: Path):
    arguments = ("--base", "base", "--layers", "--plot", "p.svg", "--json", "i.json")
    text = ok("inspect", "maths", "code", *arguments)
    for title in ("Weights (3,607 elements)", "Task vectors", "Pairs of task vectors", "By layer"):
        assert title in text
    assert "Sign conflict: of 3,607 elements" in text
    assert "Zero mean: the mean makes up at most" in text
    assert ET.parse(work / "p.svg").getroot().tag.endswith("svg")
    content = json.loads((work / "i.json").read_text())
    assert [layer["name"] for layer in content["layers"]] == [
        "layers.0", "layers.1", "layers.2", "norm"
    ]  # fmt: skip
    conflict = content["whole"]["conflict_share"]
    assert f"{100 * conflict:.2f} % were raised by one" in text


@pytest.mark.parametrize("models", [["maths"], ["maths", "code"]])
@pytest.mark.parametrize("base", [[], ["--base", "base"]])
@pytest.mark.parametrize("suffix", ["png", "pdf", "SVG"])
def test_inspect_draws_any_number_of_models(work: Path, models, base, suffix):
    ok("inspect", *models, *base, "--plot", f"p.{suffix}")
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "SVG": b"<?xml"}
    assert (work / f"p.{suffix}").read_bytes().startswith(starts[suffix])
    assert not list(work.glob(".*"))


def test_many_models_with_names_that_break_things_are_drawn(work: Path):
    names = [f"$x_{place}$ [red] & 🐙 {'long ' * 9}" for place in range(10)]
    for name in names:
        (work / name).symlink_to(work / "code")
    text = ok("inspect", *names, "maths", "--base", "base", "--layers", "--plot", "p.svg")
    assert "[red]" in text


def test_inspect_says_that_it_has_no_base(work: Path):
    assert "Without --base BASE nothing is known of task vectors" in ok("inspect", "maths")


def test_the_same_models_draw_the_same_picture(work: Path):
    for name in ("one.png", "two.png"):  # in an SVG, matplotlib's numbers of clip paths may differ
        ok("inspect", "maths", "code", "--base", "base", "--plot", name)
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "p.gif"], "p.gif ends with none of .svg, .png, .pdf"),
        (["--plot", "no/p.svg"], "There is no folder no. Make it"),
        (["--json", "x"], "x ends with none of .json"),
        (["--json", "dir.json"], "dir.json is a folder"),
        (["empty", "noise", "cut", "gone"], "cannot be inspected; 4 things must be mended"),
    ],
)
def test_inspect_refuses_before_it_reads(work: Path, arguments, words):
    (work / "dir.json").mkdir()
    result = run("inspect", "maths", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_verify_says_whole_or_what_is_wrong(work: Path):
    ok("merge", "recipe.yaml", "out")
    text = ok("verify", "out")
    assert "out is whole: 4 tensors in 1 file, 14,428 bytes of data as they were written." in text
    path = work / "out" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    result = run("verify", "out")
    assert result.exit_code == 2
    assert "out/model.safetensors: tensor norm holds other data than was written" in result.stderr


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("empty", "empty holds no merge_manifest.json"),
        ("gone", "gone is no folder"),
        ("recipe.yaml", "recipe.yaml is no folder"),
    ],
)
def test_verify_refuses_what_is_no_merge(work: Path, folder, words):
    result = run("verify", folder)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("source", ["metagpt", "variance", "rms", "matched", "uniform"])
def test_every_source_of_coefficients_goes_through_every_command(work: Path, source: str):
    change = f"coefficients={source}"
    assert ok("plan", "recipe.yaml", change).rstrip().endswith("Everything fits.")
    printed = ok("coefficients", "recipe.yaml", change, "--json", "table.json")
    assert f"source {source}" in printed
    ok("merge", "recipe.yaml", "merged", change)
    manifest = json.loads((work / "merged" / "merge_manifest.json").read_text())
    table = json.loads((work / "table.json").read_text())
    assert manifest["coefficients"] == table["coefficients"]


def test_metagpt_is_not_told_to_look_at_task_vectors(work: Path):
    shutil.copytree("maths", "twin")
    models = "models=[maths, twin]"
    printed = ok("merge", "recipe.yaml", "merged", models, "coefficients=metagpt")
    assert "in effect, uniform weighting" in printed
    assert "`target: task_vector`" not in printed


def test_a_model_that_is_a_copy_of_another_is_named(work: Path):
    shutil.copytree("maths", "twin")
    shutil.copytree("base", "unchanged")
    change = ["models=[maths, twin, unchanged]", "coefficients=uniform"]
    printed = ok("merge", "recipe.yaml", "merged", *change)
    assert "twin holds the same numbers as maths: was another model meant?" in printed
    assert "unchanged holds the same numbers as base: was another model meant?" in printed
    assert "same numbers" not in ok("merge", "recipe.yaml", "other")


@pytest.mark.parametrize("change", ["coefficients=nan", "coefficients.target=task_vector"])
def test_what_only_other_inputs_can_mend_leaves_nothing_behind(work: Path, change: str):
    shutil.copytree("base", "spoilt")
    path = work / "spoilt" / "model.safetensors"
    if change == "coefficients=nan":
        content = bytearray(path.read_bytes())
        content[-4:] = b"\x00\x00\xc0\x7f"  # NaN
        path.write_bytes(content)
    before = set(work.iterdir())
    result = run("merge", "recipe.yaml", "merged", "models=[maths, spoilt]", change)
    assert result.exit_code == 2
    assert "spoilt" in result.output
    assert set(work.iterdir()) == before
