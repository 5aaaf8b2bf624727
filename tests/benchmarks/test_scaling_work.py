"""What merges and sweeps of large models consist of."""

import pytest

from benchmarks.scaling import ASSUMED, _rounded
from benchmarks.scaling_model import STORAGE_READ, simulate
from benchmarks.scaling_plots import _clock, _fill_in
from benchmarks.scaling_work import (
    LLAMAS,
    cluster_of,
    evaluation_stage,
    llama_shapes,
    merge_stages,
    model_of,
)

# Invented costs, round enough to work with by hand.
PROFILE = {
    "storage": {"worker_read": 1e9, "worker_write": 5e8},
    "dispatch_seconds": 0.0,
    "methods": {
        "m": {
            "stages": [
                {"label": "norms", "compute_seconds_per_byte": 1e-9},
                {"label": "merge", "compute_seconds_per_byte": 2e-9},
            ],
            "serial": {"fixed": 1.0, "per_tensor": 0.01},
        }
    },
}
SMALL = {f"layers.{layer}.w": (1000, 1000) for layer in range(4)}  # 2 MB each in bfloat16


@pytest.mark.parametrize(
    ("name", "billions"), [("1.24B", 1.236), ("8B", 8.03), ("70B", 70.55), ("405B", 405.85)]
)
def test_the_shapes_are_those_of_the_published_models(name: str, billions: float):
    assert model_of(llama_shapes(name), 2).parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert name in LLAMAS


def test_a_layer_larger_than_a_file_is_a_task_of_its_own():
    model = model_of(llama_shapes("405B"), 2)
    assert len(model.shards) == 126 + 3  # layers; embedding, head and final norm
    assert max(shard.num_bytes for shard in model.shards) > 6e9


def test_costs_of_a_merge_by_hand():
    # Four files of 2 MB, three inputs each: 6 MB to read per file and stage.
    model = model_of(SMALL, 2, shard_bytes=2_000_000)
    norms, merge = merge_stages(model, PROFILE["methods"]["m"])
    assert [len(norms.works), len(merge.works)] == [4, 4]
    assert (norms.works[0].read, norms.works[0].write) == (6e6, 0)
    assert norms.works[0].compute == pytest.approx(6e-3)
    assert (merge.works[0].read, merge.works[0].write) == (6e6, 2e6)
    assert merge.works[0].compute == pytest.approx(12e-3)
    assert (norms.serial, merge.serial) == (0.0, pytest.approx(1.04))
    cluster = cluster_of(PROFILE, {"read": 1e12, "write": 1e12}, 1, 1)
    # Norms: 4 (6 + 6) ms; merge: 4 (6 + 12 + 4) ms; the driver: 1.04 s.
    assert simulate([norms, merge], cluster).seconds == pytest.approx(0.048 + 0.088 + 1.04)


def test_a_sweep_takes_statistics_once_and_reads_once():
    model = model_of(SMALL, 2, shard_bytes=2_000_000)
    norms, merge = merge_stages(model, PROFILE["methods"]["m"], num_merges=3)
    assert norms == merge_stages(model, PROFILE["methods"]["m"])[0]
    assert (merge.works[0].read, merge.works[0].write) == (6e6, 6e6)
    assert merge.works[0].compute == pytest.approx(36e-3)


def test_a_worker_is_no_faster_than_a_stream_of_the_storage():
    cluster = cluster_of(PROFILE, {"read": 4e9, "write": 4e9, "stream": 6e8}, 32, 16)
    assert (cluster.worker_read, cluster.worker_write) == (6e8, 5e8)
    assert cluster.nodes == 2


def test_scoring_loads_a_model_once_for_each_actor():
    costs = {
        "load_seconds_per_byte": 1e-9,
        "prefill_seconds_per_token_and_parameter": 1e-9,
        "decode_seconds_per_token_and_parameter": 1e-8,
    }
    workload = {"samples": 100, "prompt_tokens": 20, "new_tokens": 3}
    model = model_of(SMALL, 2)  # 4 million parameters, 8 MB
    few = evaluation_stage(model, costs, workload, num_models=3, workers=2)
    assert len(few.works) == 3
    # 100 samples of (20 + 30) ns per parameter: 0.2 s each; and 8 ms to load.
    assert few.works[0].compute == pytest.approx(100 * 0.2 + 0.008)
    many = evaluation_stage(model, costs, workload, num_models=3, workers=13)
    assert len(many.works) == 12  # four actors for each model
    assert many.works[0].compute == pytest.approx(25 * 0.2 + 0.008)
    assert many.works[0].read == 8e6


def test_slow_storage_is_what_limits_many_workers():
    model = model_of(llama_shapes("8B"), 2)
    storage = ASSUMED["storage"]["NFS server, 1.2 GB/s"]
    stages = merge_stages(model, PROFILE["methods"]["m"])
    outcome = simulate(stages, cluster_of(PROFILE, storage, 64, ASSUMED["workers_per_node"]))
    assert outcome.limit == STORAGE_READ
    assert outcome.seconds > 2 * 3 * model.num_bytes / storage["read"]


def test_numbers_are_kept_with_as_many_digits_as_they_deserve():
    assert _rounded({"a": [1.23456789, 2], "b": "x"}) == {"a": [1.235, 2], "b": "x"}
    assert [_clock(9.96), _clock(150), _clock(9000)] == ["10.0 s", "2.5 min", "2.5 h"]


def test_the_page_is_filled_in_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- numbers: begin -->old<!-- numbers: end -->\nb\n")
    _fill_in(page, "| 1 |")
    assert page.read_text() == ("a\n<!-- numbers: begin -->\n\n| 1 |\n\n<!-- numbers: end -->\nb\n")
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lost its marks"):
        _fill_in(page, "")
