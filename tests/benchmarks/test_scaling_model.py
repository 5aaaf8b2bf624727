"""The simulator's arithmetic on cases that can be worked out by hand."""

from dataclasses import replace

import pytest

from benchmarks.scaling_model import (
    LONGEST,
    NETWORK,
    RESOURCES,
    SERIAL,
    STORAGE_READ,
    STORAGE_WRITE,
    Cluster,
    Stage,
    Work,
    simulate,
)

# A worker reads 10 bytes and writes 5 a second; storage and network never run out.
FREE = Cluster(1, 1, 10.0, 5.0, 1e9, 1e9, 1e9, 0.0)
WORK = Work(read=20.0, write=10.0, compute=3.0)  # 2 + 2 + 3 = 7 seconds alone


def stage(*works: Work, serial: float = 0.0) -> Stage:
    return Stage("merge", works, serial)


def test_a_task_alone_takes_the_sum_of_its_parts():
    outcome = simulate([stage(WORK)], FREE)
    assert outcome.seconds == pytest.approx(7.0)
    assert outcome.shares["read"] == pytest.approx(2 / 7)
    assert outcome.shares["compute"] == pytest.approx(3 / 7)
    assert outcome.shares["write"] == pytest.approx(2 / 7)
    assert outcome.limit == "compute"


def test_dispatch_counts_for_every_task():
    assert simulate([stage(WORK, WORK)], replace(FREE, dispatch=0.5)).seconds == pytest.approx(15)


def test_two_workers_halve_the_time_of_equal_tasks():
    outcome = simulate([stage(*[WORK] * 4)], replace(FREE, workers=2))
    assert outcome.seconds == pytest.approx(14.0)
    assert outcome.shares[LONGEST] == 0.0


def test_an_odd_task_at_the_end_leaves_a_worker_idle():
    # 7 + 7 seconds on one worker, 7 on the other: for 7 of 14 seconds half of the workers idle.
    outcome = simulate([stage(*[WORK] * 3)], replace(FREE, workers=2))
    assert outcome.seconds == pytest.approx(14.0)
    assert outcome.shares[LONGEST] == pytest.approx(0.5 * 7 / 14)


def test_the_largest_task_starts_first():
    # Of 4, 4 and 8 seconds on two workers: 8 beside 4 + 4, not 4 beside 4 and then 8.
    works = [Work(40.0, 0.0, 0.0), Work(40.0, 0.0, 0.0), Work(80.0, 0.0, 0.0)]
    assert simulate([stage(*works)], replace(FREE, workers=2)).seconds == pytest.approx(8.0)


def test_more_workers_than_tasks_wait_for_the_longest():
    outcome = simulate([stage(WORK)], replace(FREE, workers=4))
    assert outcome.seconds == pytest.approx(7.0)
    assert outcome.shares[LONGEST] == pytest.approx(3 / 4)
    assert outcome.limit == LONGEST


def test_storage_that_all_read_from_slows_all_alike():
    # Four tasks of 40 bytes, 4 s alone, 10 bytes/s each; the storage gives 20 to all: 160 / 20.
    cluster = replace(FREE, workers=4, storage_read=20.0)
    outcome = simulate([stage(*[Work(40.0, 0.0, 0.0)] * 4)], cluster)
    assert outcome.seconds == pytest.approx(8.0)
    assert outcome.shares[STORAGE_READ] == pytest.approx(0.5)
    assert outcome.shares["read"] == pytest.approx(0.5)


def test_storage_that_takes_too_little_is_named():
    # Reading 1 s, writing 1 s alone: 5/2 bytes/s written by each on average, 1 for all three.
    cluster = replace(FREE, workers=3, storage_write=1.0)
    outcome = simulate([stage(*[Work(10.0, 5.0, 0.0)] * 3)], cluster)
    assert outcome.seconds == pytest.approx(15.0)
    assert outcome.limit == STORAGE_WRITE
    assert outcome.shares[STORAGE_WRITE] == pytest.approx(13 / 15)


def test_the_network_is_shared_by_the_workers_of_one_node():
    # Two nodes of two workers; each node moves 10 bytes/s, which two workers could take twice.
    cluster = replace(FREE, workers=4, workers_per_node=2, node_network=10.0)
    works = [Work(40.0, 0.0, 0.0)] * 4
    assert cluster.nodes == 2
    outcome = simulate([stage(*works)], cluster)
    assert outcome.seconds == pytest.approx(8.0)
    assert outcome.shares[NETWORK] == pytest.approx(0.5)
    alone = simulate([stage(*works)], replace(cluster, workers_per_node=1))
    assert alone.seconds == pytest.approx(4.0)


def test_who_does_not_use_what_is_full_is_not_slowed_down():
    # One reads (4 s alone, but the storage gives 5 bytes/s: 8 s); the other computes for 4 s.
    cluster = replace(FREE, workers=2, storage_read=5.0)
    outcome = simulate([stage(Work(40.0, 0.0, 0.0), Work(0.0, 0.0, 4.0))], cluster)
    assert outcome.seconds == pytest.approx(8.0)
    # First 4 s, two busy: the reader half reads and half waits, the other computes. Then 4 s of
    # one busy worker of two: half waiting; the other half is reading while somebody idles.
    assert outcome.shares["compute"] == pytest.approx((4 * 1 / 2) / 8)
    assert outcome.shares["read"] == pytest.approx((4 * 0.5 / 2 + 4 * 0.5 / 2) / 8)
    assert outcome.shares[STORAGE_READ] == pytest.approx((4 * 0.5 / 2 + 4 * 0.5) / 8)
    assert outcome.shares[LONGEST] == pytest.approx((4 * 0.5 / 2) / 8)


def test_stages_follow_each_other_and_the_driver_is_waited_for():
    stages = [Stage("norms", (Work(10.0, 0.0, 0.0),), 1.0), Stage("merge", (WORK,), 2.0)]
    outcome = simulate(stages, replace(FREE, workers=2))
    assert outcome.by_stage == pytest.approx({"norms": 2.0, "merge": 9.0})
    assert outcome.seconds == pytest.approx(11.0)
    assert outcome.shares[SERIAL] == pytest.approx(3 / 11)


def test_the_shares_add_up():
    cluster = Cluster(7, 2, 10.0, 5.0, 33.0, 9.0, 14.0, 0.1)
    works = tuple(Work(3.0 * i, 2.0 * i, 0.3 * i) for i in range(1, 24))
    outcome = simulate([Stage("merge", works, 0.7)], cluster)
    assert set(outcome.shares) == set(RESOURCES)
    assert sum(outcome.shares.values()) == pytest.approx(1.0)
    total_read = sum(work.read for work in works)
    assert outcome.seconds > total_read / cluster.storage_read


def test_more_workers_never_take_longer():
    works = tuple(Work(30.0, 10.0, 5.0) for _ in range(64))
    cluster = Cluster(1, 4, 10.0, 5.0, 120.0, 50.0, 40.0, 0.01)
    times = [
        simulate([Stage("merge", works)], replace(cluster, workers=2**n)).seconds for n in range(8)
    ]
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(64 * 30 / 120, rel=0.05)  # what the storage can give
