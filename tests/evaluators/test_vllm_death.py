"""An engine that was killed cannot say so: whoever waits for it is told. No engine is started."""

import queue
from types import SimpleNamespace
from typing import Any

import pytest

from evaluators.backends.vllm_death import how_it_ended, is_dead, waking_when_dead


def make_engine(*exit_codes: int | None, dead: bool = False) -> Any:
    processes = [SimpleNamespace(exitcode=code) for code in exit_codes]
    resources = SimpleNamespace(
        engine_dead=dead, engine_manager=SimpleNamespace(processes=processes)
    )
    core = SimpleNamespace(resources=resources, outputs_queue=queue.Queue())
    return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))


def test_whoever_waits_for_an_engine_that_is_killed_is_woken():
    engine = make_engine(None)
    core = engine.llm_engine.engine_core
    with waking_when_dead(engine, KeyError):
        core.resources.engine_dead = True
        assert isinstance(core.outputs_queue.get(timeout=30), KeyError)
    assert is_dead(engine)


def test_an_engine_that_lives_is_left_alone():
    engine = make_engine(None)
    with waking_when_dead(engine, KeyError):
        pass
    engine.llm_engine.engine_core.resources.engine_dead = True  # closed, when nobody waits
    assert engine.llm_engine.engine_core.outputs_queue.empty()


def test_an_engine_within_this_process_has_nothing_to_watch():
    engine: Any = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=object()))
    with waking_when_dead(engine, KeyError):
        pass
    assert not is_dead(engine)
    assert how_it_ended(engine) == ""


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ((-9, 0), "killed, as the system does where memory runs out"),
        ((-11,), "by SIGSEGV"),
        ((1, None), ""),
    ],
)
def test_the_end_of_an_engine_is_told_in_words(codes: tuple[int | None, ...], words: str):
    assert how_it_ended(make_engine(*codes)) == words
