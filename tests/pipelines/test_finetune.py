"""`nan-merge finetune`: one's own fine-tunes of a CLIP, killed and resumed, merged and run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from evaluators.backends.clip import build_clip, new_clip
from evaluators.backends.clip_checkpoints import save_clip, save_image_tower
from evaluators.clip_sets import CLIP_SETS
from evaluators.image_sets import load_image_set
from evaluators.torchvision_repair import repair
from nan_merge.errors import CheckpointError, ConfigError, DataError, OutputError
from nan_merge.merge import merge_checkpoints
from nan_merge.recipe import MergeRecipe
from nan_merge.yaml_config import load_config
from pipelines import finetune_command, run
from pipelines.config import RunConfig
from pipelines.experts import run_finetuning
from pipelines.finetune_command import finetune_command as finetune
from tests.clip_runs import Here
from tests.clip_set_folders import drawn, encoded, write_class_folders

repair()
for package in ("open_clip", "sklearn"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
SETS = ("EuroSAT", "SVHN")
TUNE = {"steps": 4, "batch_size": 8, "learning_rate": 1.0e-3, "warmup_steps": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, and training and test images of two sets in class folders."""
    folder = tmp_path_factory.mktemp("finetune")
    save_clip(build_clip("nan-merge-mini", seed=0), folder / "clip")
    for name in SETS:
        for split in ("train", "test"):
            write_class_folders(name, folder / "data" / name, split=split)
    return folder


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    here = Here()
    monkeypatch.setattr(finetune_command, "Workers", lambda *_: here)
    monkeypatch.setattr(run, "open_workers", lambda *_: here)
    monkeypatch.setattr(run, "publish_results", lambda *arguments: None)
    return here


def content_of(made: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "run_folder": str(out / "run"),
        "cache": str(out / "cache"),
        "clip": str(made / "clip"),
        "experts": {"tasks": list(SETS), "finetune": TUNE},
        "evaluate": {"benchmarks": list(SETS), "data": str(made / "data")},
        "track": {"mlflow": False},
        **changes,
    }


def config_of(made: Path, out: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(content_of(made, out, **changes))


def output_of(config: RunConfig, output: Path | None = None) -> str:
    console = Console(file=StringIO(), width=200)
    finetune(config, console, output)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_fine_tunes_of_a_clip_are_what_merge_and_run_take(made, workers, tmp_path):
    config = config_of(made, tmp_path)
    said = output_of(config, tmp_path / "models")
    for name in ("base", "eurosat", "svhn"):
        assert str(tmp_path / "models" / name) in said
        assert (tmp_path / "models" / name / "model.safetensors").is_file()
    assert "nan-merge run" in said
    folder = tmp_path / "models"
    names = {"base": str(folder / "base"), "models": [str(folder / n) for n in ("eurosat", "svhn")]}
    recipe = MergeRecipe.model_validate({**names, "method": "task_arithmetic"})
    merge_checkpoints([(recipe, tmp_path / "merged")])
    assert (tmp_path / "merged" / "model.safetensors").is_file()

    trained = workers.num_tasks
    merges = ({"name": "TA", "method": "task_arithmetic", "coefficients": {"lambda": 0.3}},)
    (results,) = run.run_config(
        config_of(made, tmp_path, merges=merges), console=Console(quiet=True)
    )
    assert results.models() == ["Pretrained", "Individual", "TA"]
    names = {path.name for path in (tmp_path / "cache").glob("fine-tunes-*/*")}
    assert names == set(SETS)
    assert not list((tmp_path / "cache").glob("experts-*"))  # nothing was pretrained
    output_of(config)
    assert trained < workers.num_tasks  # the run decoded, merged and evaluated
    before = workers.num_tasks
    output_of(config)
    assert workers.num_tasks == before  # and trained nothing again


def test_one_more_task_leaves_the_other_fine_tunes_as_they_are(made, workers, tmp_path):
    one = {"tasks": [SETS[0]], "finetune": TUNE}
    output_of(config_of(made, tmp_path, experts=one))
    (first,) = (tmp_path / "cache").glob("fine-tunes-*/EuroSAT/model.safetensors")
    written = first.stat().st_mtime_ns
    output_of(config_of(made, tmp_path))
    assert first.stat().st_mtime_ns == written
    assert len(list((tmp_path / "cache").glob("fine-tunes-*/*"))) == 2


def test_a_model_of_all_tasks_is_trained_from_the_clip_too(made, workers, tmp_path):
    experts = {
        "tasks": list(SETS),
        "finetune": TUNE,
        "multitask": {"steps": 2, "images_per_task": 4},
    }
    assert "Traditional MTL" in output_of(config_of(made, tmp_path, experts=experts))


def test_a_missing_set_is_told_before_anything_is_trained(made, workers, tmp_path):
    experts = {"tasks": ["EuroSAT", "DTD"], "finetune": TUNE}
    with pytest.raises(DataError, match=r"There is no folder .*DTD with the images of DTD"):
        output_of(config_of(made, tmp_path, experts=experts))
    (tmp_path / "data" / "DTD" / "test" / "zigzagged").mkdir(parents=True)
    evaluate = {"benchmarks": ["DTD"], "data": str(tmp_path / "data")}
    with pytest.raises(DataError, match="holds no train split of DTD"):
        output_of(
            config_of(made, tmp_path, experts={**experts, "tasks": ["DTD"]}, evaluate=evaluate)
        )
    assert workers.num_tasks == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": "open_clip://ViT-B-23/openai"}, r"open_clip has no model 'ViT-B-23'"),
        ({"clip": "open_clip://ViT-B-32/openai"}, r"QuickGELU mismatch"),
        ({"backbone": "ViT-B-23"}, r"open_clip has no model 'ViT-B-23'"),
        (
            {"experts": None, "models": ["./a", "./b"]},
            r"This run file trains nothing: it names its `models`",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(made, workers, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        output_of(config_of(made, tmp_path, **changes))
    assert workers.num_tasks == 0


def test_a_clip_of_another_backbone_is_refused(made, workers, tmp_path):
    config = build_clip("nan-merge-mini", seed=0).tower.model_config
    shallow = {**config, "vision_cfg": {**config["vision_cfg"], "layers": 2}}
    save_clip(new_clip("shallow", shallow, {}, seed=0), tmp_path / "clip")
    changes = {"clip": str(tmp_path / "clip"), "backbone": "nan-merge-mini"}
    with pytest.raises(CheckpointError, match=r"layers 2.*but `backbone`.*layers 4"):
        output_of(config_of(made, tmp_path, **changes))


def test_a_tower_without_a_text_tower_makes_no_head(made, workers, tmp_path):
    save_image_tower(build_clip("nan-merge-mini", seed=0).tower, tmp_path / "tower")
    with pytest.raises(CheckpointError, match="text tower"):
        output_of(config_of(made, tmp_path, clip=str(tmp_path / "tower")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": None}, "EuroSAT is a set of real images, on which no CLIP is pretrained here"),
        ({"base": "./b"}, "leave `base` out"),
        ({"experts": {"tasks": SETS, "pretrain": {"steps": 1}}}, "leave pretrain out, or"),
        ({"experts": {"tasks": ["EuroSAT", "digits"]}}, "sets of real images, and the others"),
        ({"experts": {"tasks": ["EuroSAT", "Cras"]}}, "did you mean 'Cars'"),
        (
            {
                "clip": None,
                "experts": {"tasks": ["digits"]},
                "evaluate": {"benchmarks": ["digits"]},
            },
            "pretrained on two tasks or more",
        ),
    ],
)
def test_experts_have_one_start(made, tmp_path, changes, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(content_of(made, tmp_path, **changes)))))
    with pytest.raises(ConfigError, match=message):
        load_config(path, RunConfig)


def test_the_recipe_of_task_arithmetic_is_a_run_file():
    config = load_config(ROOT / "configs/finetune_vit_b32.yaml", RunConfig)
    assert config.experts is not None
    assert config.experts.tasks == tuple(CLIP_SETS) == config.evaluate.image_tasks
    recipe = config.experts.finetune
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate) == (2000, 128, 1e-5)
    assert (recipe.weight_decay, recipe.warmup_steps, recipe.max_grad_norm) == (0.1, 200, 1.0)


def test_a_place_that_is_taken_is_refused_before_training(made, workers, tmp_path):
    taken = tmp_path / "models" / "svhn"
    taken.mkdir(parents=True)
    (taken / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"svhn exists already"):
        output_of(config_of(made, tmp_path), tmp_path / "models")
    assert workers.num_tasks == 0


OWN = {"pets": {"classes": {"n01": "tabby cat", "n02": "pug"}, "templates": ["a photo of a {}."]}}


def own_set(folder: Path, names: tuple[str, ...] = ("n01", "n02")) -> Path:
    """Three pictures of each class and split."""
    for split in ("train", "test"):
        for label, name in enumerate(names):
            (folder / "pets" / split / name).mkdir(parents=True)
            for number in range(3):
                path = folder / "pets" / split / name / f"{number}.png"
                path.write_bytes(encoded(drawn("EuroSAT", label, number)))
    return folder


def test_a_folder_of_ones_own_images_is_trained_and_evaluated_on(made, workers, tmp_path):
    changes = {
        "experts": {"tasks": ["pets"], "finetune": TUNE},
        "evaluate": {"image_sets": OWN, "benchmarks": ["pets"], "data": str(own_set(tmp_path))},
    }
    assert "pets" in output_of(config_of(made, tmp_path, **changes))
    config = config_of(made, tmp_path, **changes)
    (results,) = run.run_config(config, console=Console(quiet=True))
    row = results.row("Individual", "pets")
    assert row is not None and row.num_samples == 6
    (prepared,) = (tmp_path / "cache" / "data").glob("pets-test-*")
    assert load_image_set(prepared).class_names == ("tabby cat", "pug")
    prompts = {**OWN["pets"], "templates": ["a drawing of a {}."]}
    changes["evaluate"] |= {"image_sets": {"pets": prompts}}
    run.run_config(config_of(made, tmp_path, **changes), console=Console(quiet=True))
    assert len(list((tmp_path / "cache").glob("fine-tunes-*/pets"))) == 2  # other prompts


def test_folders_that_are_not_the_classes_are_told(made, workers, tmp_path):
    def refused(names: tuple[str, ...], folder: Path, message: str) -> None:
        evaluate = {"image_sets": OWN, "benchmarks": ["pets"], "data": str(own_set(folder, names))}
        experts = {"tasks": ["pets"], "finetune": TUNE}
        with pytest.raises(DataError, match=message):
            output_of(config_of(made, tmp_path, experts=experts, evaluate=evaluate))

    refused(("n01", "n02", "n03"), tmp_path / "more", "pets has no class n03")
    refused(("n01",), tmp_path / "fewer", "1 of 2 classes have no image pug")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"pets": {"classes": ["cat"]}}, "a list of at least 2"),
        ({"pets": {"classes": ["cat", "Cat"]}}, "two classes are both called Cat"),
        ({"pets": {"classes": ["cat", "dog"], "templates": ["a pet"]}}, "'a pet' has no {}"),
        ({"DTD": {"classes": ["cat", "dog"]}}, "DTD is a benchmark already"),
        ({"../pets": {"classes": ["cat", "dog"]}}, "text that matches"),
    ],
)
def test_what_is_no_set_of_ones_own(made, tmp_path, own, message):
    content = content_of(made, tmp_path)
    content["evaluate"] |= {"image_sets": own}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml", RunConfig)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_killed_and_started_again_it_gives_the_bytes_of_an_undisturbed_one(made, tmp_path):
    """The whole process gets SIGKILL; what Ray ran ends with it."""
    finetuning = {**TUNE, "steps": 16, "batch_size": 96}
    content = content_of(made, tmp_path, evaluate={"benchmarks": ["digits", "texture"]})
    content["experts"] = {
        "tasks": ["digits", "texture"], "finetune": finetuning, "save_seconds": 0,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {
        "NAN_MERGE_CACHE": str(tmp_path / "hashes"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pipelines.cli", "finetune", "run.yaml"]
    begun = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    pattern = "cache/fine-tunes-*/.*.partial/training/state.safetensors"
    deadline = time.monotonic() + 200
    while not (states := sorted(tmp_path.glob(pattern))):
        assert begun.poll() is None and time.monotonic() < deadline, begun.communicate()
        time.sleep(0.02)
    os.kill(begun.pid, signal.SIGKILL)
    begun.communicate()
    assert states
    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "from where they stood" in again.stdout
    found = {path.parent.name: path for path in tmp_path.glob("cache/fine-tunes-*/*/*.safetensors")}
    assert sorted(found) == ["digits", "texture"]
    config = load_config(tmp_path / "run.yaml", RunConfig)
    assert config.experts is not None
    (images,) = (tmp_path / "cache" / "data").glob("digits-train*")
    arguments = (images, 0, made / "clip", tmp_path / "undisturbed", 3600, 1)
    list(run_finetuning(config.experts.finetune, *arguments))
    undisturbed = tmp_path / "undisturbed" / "model.safetensors"
    assert found["digits"].read_bytes() == undisturbed.read_bytes()
    assert not list(tmp_path.rglob("*.partial"))
