"""Runs over models in the layout of the original LLaVA code: what is asked, and what is told."""

import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from torch import equal

from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import IncompatibleError
from nan_merge.recipe import MergeRecipe, ModelReference
from nan_merge.yaml_config import load_config
from pipelines.config import RunConfig
from pipelines.hub_layout import in_hub_layout, loss_notes, losses_of_copies
from pipelines.results import read_results
from pipelines.run import run_config
from tests.vlm_checkpoints import load_tensors, make_both_originals

pytest.importorskip("transformers", reason="transformers is not installed")
NEWLINE = "image_newline"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_both_originals(tmp_path_factory.mktemp("originals"))


def merge_of(made: Path, base: str, *models: ModelReference, **more: object) -> MergeRecipe:
    content = {"base": base, "models": models, "method": "task_arithmetic"}
    return MergeRecipe.model_validate(content | more)


@pytest.mark.parametrize("base", ["1.5/base", "1.5/base-hub"])
def test_what_a_copy_would_lose_is_refused_or_told(made, base):
    path, newer = str(made / base), ModelReference(path=str(made / "1.6" / "a"), name="newer")
    with pytest.raises(IncompatibleError, match=r"newer \(.*/1\.6/a\) .*has image_newline") as told:
        losses_of_copies(path, [newer], [merge_of(made, path, newer)])
    assert told.match(r"Name newer in the hub's layout.*`missing: \{image_newline: base\}`")
    wish = merge_of(made, path, newer, missing={NEWLINE: "base"})
    losses = losses_of_copies(path, [newer], [wish])
    assert losses == {"asked without image_newline": "newer"}
    (note,) = loss_notes(losses)
    assert note.startswith("note: newer: asked without image_newline, which the base lacks")


def test_models_that_lose_nothing_are_not_told_of(made):
    for base, name in (("1.5/base", "1.5/a"), ("1.6/base", "1.6/a"), ("1.5/base", "1.6/a-hub"),
                       ("1.5/base-hub", "1.5/a"), ("1.6/a", "1.6/base")):  # fmt: skip
        model = ModelReference(path=str(made / name))
        assert losses_of_copies(str(made / base), [model], []) == {}


def test_a_copy_has_the_tower_that_its_model_has_itself(made, tmp_path):
    place = made / "1.6"
    tuned = ModelReference(path=str(place / "base"), name="tuned")
    wish = merge_of(made, str(place / "a"), tuned, config={"path": str(place / "config")},
                    modules={"vision_tower": {"path": str(place / "clip")}})  # fmt: skip
    own = open_checkpoint(tuned.path).folder
    expected = load_tensors(place / "base-hub")
    towers = [name for name in expected if name.startswith("vision_tower.")]
    for base in (str(place / "a"), None):
        copy = in_hub_layout(base, tuned, own, tmp_path, f"of-{base is None}", [wish])
        found = load_tensors(copy)
        assert towers and all(equal(found[name], expected[name]) for name in towers)


@pytest.mark.ray
@pytest.mark.slow  # five models are loaded and asked: two minutes
@pytest.mark.timeout(900)
def test_a_run_over_originals_alone_finishes(made, tmp_path):
    from evaluators.training.drawn_questions import write_drawn_benchmarks

    place = made / "1.5"
    write_drawn_benchmarks(tmp_path / "data", 4, 5)
    shared = {
        "method": "task_arithmetic",
        "config": {"path": str(place / "config")},
        "modules": {"vision_tower": {"path": str(place / "clip")}},
        "missing": {NEWLINE: "base"},
    }
    content = {
        "name": "originals",
        "run_folder": str(tmp_path / "run"),
        "base": str(place / "base"),
        "models": [str(place / "a"), {"path": str(made / "1.6" / "b"), "name": "newer"}],
        "merges": [{"name": "TA", **shared}, {"name": "NAN", "coefficients": "nan", **shared}],
        "evaluate": {
            "benchmarks": [{"name": "ai2d", "profile": "llava", "max_tokens": 4}],
            "backend": {"name": "transformers", "dtype": "float32", "device": "cpu"},
            "data": str(tmp_path / "data"),
        },
        "track": {"mlflow": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    console = Console(record=True, width=120)
    run_config(load_config(path, RunConfig), console=console)
    results = read_results(tmp_path / "run")
    asked = {row.model: row.num_samples for row in results.rows}
    assert asked == dict.fromkeys(("Pretrained", "a", "newer", "TA", "NAN"), 4)
    assert "note: newer: asked without image_newline" in console.export_text()
    assert "asked without image_newline" in (tmp_path / "run" / "report.html").read_text()
    copy = tmp_path / "run" / "hub-layout" / "newer"
    assert json.loads((copy / "config.json").read_text())["model_type"] == "llava"
