"""Which model a free actor takes, worked by hand."""

from __future__ import annotations

import pytest

from cluster.model_queue import ModelJob, ModelQueue, choose_queue, largest_first


def job(label: str, costs: list[float]) -> ModelJob:
    return ModelJob(label, print, (), print, costs, cost_of=float)


def queue_with(num_left: int, *, load: float, shard: float, serving: int) -> ModelQueue:
    """A queue of equal shards, one of them finished, the others unsent."""
    queue = ModelQueue(job("m", [1.0] * (num_left + 1)))
    queue.note_load(load)
    queue.note_shard(queue.take(helping=False), shard)
    queue.serving = serving
    return queue


def test_the_model_with_the_most_work_is_first():
    queues = largest_first([job("a", [1, 1]), job("b", [5]), job("none", []), job("c", [1, 3, 2])])
    assert [queue.job.label for queue in queues] == ["c", "b", "a"]
    assert choose_queue(queues, count_promised=False) is queues[0]


def test_a_model_that_nobody_serves_comes_before_any_help():
    big, small = largest_first([job("small", [1]), job("big", [9, 9, 9, 9, 9, 9])])
    big.serving = 1
    assert choose_queue([big, small], count_promised=False) is small
    small.promised = 1
    assert choose_queue([big, small], count_promised=False) is small
    assert choose_queue([big, small], count_promised=True) is big


@pytest.mark.parametrize(
    ("num_left", "load", "shard", "serving", "is_worth"),
    [
        (4, 10.0, 3.0, 1, True),  # alone 12 s; together (12 + 10) / 2 = 11 s
        (3, 10.0, 3.0, 1, False),  # alone 9 s; together (9 + 10) / 2 = 9.5 s
        (7, 10.0, 3.0, 2, True),  # two: 21 / 2 = 10.5 s; three: (21 + 10) / 3 = 10.33 s
        (6, 10.0, 3.0, 2, False),  # two: 9 s; three: 28 / 3 = 9.33 s
    ],
)
def test_help_is_worth_a_load_if_it_ends_the_work_sooner(num_left, load, shard, serving, is_worth):
    queue = queue_with(num_left, load=load, shard=shard, serving=serving)
    assert (choose_queue([queue], count_promised=False) is queue) == is_worth


def test_before_anything_is_measured_help_comes_where_more_is_left_than_actors_hold():
    queue = ModelQueue(job("m", [1.0] * 3))
    queue.serving = 1
    assert choose_queue([queue], count_promised=False) is queue  # 3 > 2 of one actor
    queue.promised = 1
    assert choose_queue([queue], count_promised=True) is None  # not > 4 of two


def test_help_goes_where_most_is_left_for_each_actor():
    crowded = queue_with(12, load=0.1, shard=1.0, serving=4)  # 3 s each
    lonely = queue_with(5, load=0.1, shard=1.0, serving=1)  # 5 s
    assert choose_queue([crowded, lonely], count_promised=False) is lonely


def test_a_models_first_actor_and_its_helpers_work_towards_each_other():
    queue = ModelQueue(job("m", [1.0] * 5))
    assert [queue.take(False), queue.take(True), queue.take(False)] == [0, 4, 1]
    queue.give_back([0, 1])
    assert list(queue.unsent) == [0, 1, 2, 3]


def test_time_left_is_of_costs_not_of_counts():
    queue = ModelQueue(job("m", [2.0, 6.0]))
    assert queue.remaining_seconds() is None
    queue.note_shard(queue.take(False), 1.0)
    assert queue.remaining_seconds() == 3.0  # 6 at 2 a second


def test_a_cost_of_nothing_is_refused():
    with pytest.raises(ValueError, match="m: the cost of every item must be positive"):
        ModelQueue(job("m", [1.0, 0.0]))
