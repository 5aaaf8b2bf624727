"""What is kept between runs is known by everything that shaped it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evaluators.backends.clip import build_clip
from evaluators.backends.clip_checkpoints import save_clip, save_image_tower
from evaluators.image_classification import ImageBenchmark
from evaluators.predictions import Prediction, read_predictions
from evaluators.quickstart_images import image_set_path, load_quickstart_task, sample_cluster
from evaluators.torchvision_repair import repair
from nan_merge.errors import CheckpointError
from pipelines import evaluate
from pipelines.evaluate import Candidate, evaluate_candidates, image_benchmarks

repair()
for package in ("open_clip", "sklearn", "matplotlib"):
    pytest.importorskip(package)

NAMES = ("letters", "style")


class Killed(BaseException):
    """The process ended here."""


class Here:
    """Workers that work in this process, and count."""

    def __init__(self) -> None:
        self.num_tasks = 0
        self.scored: list[str] = []
        self.killed_after = 1000

    def run_tasks(self, stage, tasks):
        self.num_tasks += len(tasks)
        return [task.function(*task.arguments) for task in tasks]

    def serve_models(self, stage, jobs, on_result, samples_of):
        for job in jobs:
            model = job.load(*job.arguments)
            for item in job.items:
                if len(self.scored) == self.killed_after:
                    raise Killed
                self.scored.append(f"{job.label}/{item}")
                on_result(job, item, job.work(model, item))


@pytest.fixture
def workers() -> Here:
    return Here()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CLIPs of other weights, a tower, and the images."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (0, 1):
        clip = build_clip("nan-merge-mini", seed=seed)
        save_clip(clip, folder / f"clip{seed}")
    save_image_tower(clip.tower, folder / "tower")
    for name in NAMES:
        load_quickstart_task(name, "test", seed=0, cache=folder)
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "hashes"))
    return Path(shutil.copytree(made, tmp_path / "work"))


def benchmarks(work: Path, workers: Here, clip: str = "clip0") -> list[ImageBenchmark]:
    sets = {name: image_set_path(name, "test", 0, work) for name in NAMES}
    return image_benchmarks(work / clip, sets, NAMES, work / "heads", workers)  # type: ignore[arg-type]


def heads_of(found: list[ImageBenchmark]) -> str:
    """Of the first benchmark; each has a file of its own."""
    assert len({benchmark.heads_path for benchmark in found}) == len(found)
    return found[0].heads_path


def test_heads_are_made_once_and_of_the_content_of_the_clip(work, workers):
    first = heads_of(benchmarks(work, workers))
    assert Path(first).parent == work / "heads"
    assert heads_of(benchmarks(work, workers)) == first
    assert workers.num_tasks == 1
    # Another CLIP in the same place: its heads are its own.
    shutil.rmtree(work / "clip0")
    shutil.copytree(work / "clip1", work / "clip0")
    second = heads_of(benchmarks(work, workers))
    assert Path(second).read_bytes() != Path(first).read_bytes()
    # The same CLIP in another place: nothing is made again.
    assert heads_of(benchmarks(work, workers, "clip1")) == second
    assert workers.num_tasks == 2


def test_heads_are_made_anew_for_another_config_or_protocol(work, workers, monkeypatch):
    first = heads_of(benchmarks(work, workers))
    path = work / "clip0" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["heads"] = 1
    path.write_text(json.dumps(config))
    second = heads_of(benchmarks(work, workers))
    monkeypatch.setattr(evaluate, "PROTOCOL_VERSION", evaluate.PROTOCOL_VERSION + 1)
    assert len({first, second, heads_of(benchmarks(work, workers))}) == 3


def test_a_clip_that_is_not_there_is_named(work, workers):
    with pytest.raises(CheckpointError, match=r"nowhere/open_clip_config\.json.*`clip`"):
        benchmarks(work, workers, "nowhere")


def test_predictions_are_made_anew_when_the_config_or_the_batch_changes(work, workers):
    found = benchmarks(work, workers)
    candidates = [Candidate("tower", work / "tower", work / "predictions")]

    def scored(batch_size: int = 250) -> list[str]:
        workers.scored.clear()
        evaluate_candidates(candidates, found, batch_size, workers)
        return workers.scored

    halves = [f"tower/{name}, shard {number}" for name in NAMES for number in (0, 1)]
    assert scored() == halves  # of 500 images, a batch of 250 each
    assert scored() == []
    thirds = [f"tower/{name}, shard {number}" for name in NAMES for number in (0, 1, 2)]
    assert scored(100) == thirds  # two batches of 100 each, and the last 100
    path = work / "tower" / "config.json"
    config = json.loads(path.read_text())
    config["preprocess"]["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(config))
    assert scored(100) == thirds
    assert scored(100) == []


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3])
def test_a_killed_evaluation_goes_on_shard_by_shard_to_the_same_bytes(work, workers, killed_after):
    found = benchmarks(work, workers)

    def evaluate_into(folder: str) -> dict:
        candidate = Candidate("tower", work / "tower", work / folder)
        return evaluate_candidates([candidate], found, 250, workers)  # type: ignore[arg-type]

    undisturbed = evaluate_into("whole")
    assert len(workers.scored) == 4
    workers.scored.clear()
    workers.killed_after = killed_after
    with pytest.raises(Killed):
        evaluate_into("killed")
    workers.killed_after = 1000
    assert evaluate_into("killed") == undisturbed
    assert len(workers.scored) == len(set(workers.scored)) == 4
    for name in NAMES:
        whole, again = (work / folder / f"{name}.jsonl" for folder in ("whole", "killed"))
        assert whole.read_bytes() == again.read_bytes()


def test_what_the_same_run_with_another_seed_answered_is_taken_over(work, workers):
    found = benchmarks(work, workers)
    first = Candidate("tower", work / "tower", work / "seed0")
    scores = evaluate_candidates([first], found, 250, workers)
    workers.scored.clear()
    second = replace(first, predictions=work / "seed1", earlier=(work / "none", work / "seed0"))
    assert evaluate_candidates([second], found, 250, workers) == scores
    assert workers.scored == []
    assert (work / "seed1" / "style.jsonl").read_bytes() == (
        work / "seed0" / "style.jsonl"
    ).read_bytes()
    # Another batch size is another record: nothing is taken over.
    evaluate_candidates([replace(second, predictions=work / "seed2")], found, 500, workers)
    assert len(workers.scored) == 2


def test_predictions_know_their_source(work, workers):
    candidate = Candidate("tower", work / "tower", work / "predictions")
    scores = evaluate_candidates([candidate], benchmarks(work, workers), 250, workers)  # type: ignore[arg-type]
    for name in NAMES:
        predictions = read_predictions(candidate.predictions / f"{name}.jsonl", Prediction)
        assert len({each.cluster_id for each in predictions}) == 7
        assert all(each.cluster_id == sample_cluster(each.sample_id) for each in predictions)
        assert scores["tower", name].num_samples == 500


@pytest.mark.parametrize("models_at_once", [1, 2, 5])
def test_models_that_share_a_pass_answer_as_alone(work, workers, models_at_once):
    found = benchmarks(work, workers)
    towers = {"first": work / "tower", "second": work / "other", "third": work / "third"}
    for seed, folder in enumerate(list(towers.values())[1:], start=5):
        save_image_tower(build_clip("nan-merge-mini", seed=seed).tower, folder)
    alone = {
        name: evaluate_candidates(
            [Candidate(name, folder, work / "alone" / name)], found, 250, workers
        )
        for name, folder in towers.items()
    }
    # One of them has a part already: it does not share a pass with the others.
    Path(work / "together").mkdir()
    shutil.copytree(work / "alone" / "third", work / "together" / "third")
    (work / "together" / "third" / "style.jsonl").unlink()
    workers.scored.clear()
    candidates = [Candidate(name, path, work / "together" / name) for name, path in towers.items()]
    together = evaluate_candidates(candidates, found, 250, workers, models_at_once=models_at_once)
    assert len(workers.scored) == (4 if models_at_once > 1 else 8) + 2
    for name in towers:
        for benchmark in NAMES:
            assert together[name, benchmark] == alone[name][name, benchmark]
            files = [work / each / name / f"{benchmark}.jsonl" for each in ("alone", "together")]
            assert files[0].read_bytes() == files[1].read_bytes()
