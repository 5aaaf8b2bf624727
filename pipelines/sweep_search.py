"""Which merges a sweep makes: all of a grid, some drawn at random, or what Optuna proposes."""

from __future__ import annotations

import logging
import random
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from nan_merge.errors import ConfigError
from pipelines.extras import require
from pipelines.sweep_config import Range, Sweep
from pipelines.sweep_points import Point, PointMaker, checked_points, grid_points

if TYPE_CHECKING:
    from optuna import Trial  # pyright: ignore[reportMissingImports]

    from pipelines.config import RunConfig

Search = Generator[list[Point], Mapping[str, float]]
"""Yields points to merge and score together; takes their dev scores by name, failures left out."""
DRAWS_PER_POINT = 100
DIGITS = 6  # of a number that is drawn, so that names stay short


def open_search(maker: PointMaker, seed: int) -> Search:
    """The search that the run file asks for; what it can know to be wrong is said here.

    Raises:
        ConfigError: If there are no points, too many, or some that no recipe may have.
        MissingExtraError: If Optuna is asked for and not installed.
    """
    search = maker.sweep.search
    if search.name == "grid":
        return _all_at_once(grid_points(maker))
    if (search.points or 0) > maker.sweep.max_points:
        raise ConfigError(
            f"The sweep has {search.points:,} points, more than `sweep.max_points` "
            f"({maker.sweep.max_points:,}). Ask for fewer, or raise `sweep.max_points`."
        )
    if search.name == "random":
        return _all_at_once(random_points(maker, seed))
    require(["optuna"])
    checked_points(maker, [(place, _first(maker, place)) for place in _places(maker)])
    return _optuna_batches(maker, seed)


def listed(config: RunConfig) -> list[str]:
    """What `nan-merge sweep --list` prints: the name of every merge, and how many there are.

    Raises:
        ConfigError: As `open_search`.
    """
    sweep = config.sweep
    assert sweep is not None
    search = open_search(PointMaker(config, sweep), config.seed)
    if sweep.search.name == "optuna":
        return [f"{sweep.search.points:,} merges, proposed one batch after the other by Optuna."]
    names = [point.name for point in next(search)]
    fewer = fewer_than_asked(sweep, len(names))
    return [*names, f"{len(names):,} merge{'s' * (len(names) != 1)}", *([fewer] if fewer else [])]


def fewer_than_asked(sweep: Sweep, found: int) -> str:
    """What to say where random draws found fewer merges than were asked for, or ""."""
    wanted = sweep.search.points or 0
    if sweep.search.name != "random" or found >= wanted:
        return ""
    draws = wanted * DRAWS_PER_POINT
    return (
        f"sweep.search.points asks for {wanted:,} merges, but {draws:,} draws found no more than "
        f"{found:,} that differ and that a recipe may have."
    )


def _places(maker: PointMaker) -> range:
    return range(len(maker.sweep.merges))


def _first(maker: PointMaker, place: int) -> dict[str, Any]:
    """The first value of everything that varies, which shows what is wrong with an entry."""
    return {
        key: values.at(0) if isinstance(values, Range) else values[0]
        for key, values in maker.sweep.merges[place].vary.items()
    }


def _all_at_once(points: list[Point]) -> Search:
    yield points


def random_points(maker: PointMaker, seed: int) -> list[Point]:
    """Different points, drawn evenly over the entries and then over each key's values.

    Fewer than asked for where the sweep has no more; `fewer_than_asked` tells it.

    Raises:
        ConfigError: If none can be drawn.
    """
    wanted = maker.sweep.search.points or 1
    source = random.Random(seed)
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    problem = ConfigError("nothing was drawn")
    for _ in range(wanted * DRAWS_PER_POINT):
        place = source.randrange(len(maker.sweep.merges))
        values = {key: _drawn(each, source) for key, each in maker.sweep.merges[place].vary.items()}
        try:
            found.setdefault(maker.make(place, values).content, (place, values))
        except ConfigError as error:  # such a draw is no merge; others may be
            problem = error
        if len(found) == wanted:
            break
    if not found:
        raise ConfigError(f"The sweep has no points: every draw was refused. The last: {problem}")
    return checked_points(maker, found.values())


def _drawn(values: tuple[Any, ...] | Range, source: random.Random) -> Any:
    if not isinstance(values, Range):
        return source.choice(values)
    if values.is_continuous:
        return values.at(source.random(), DIGITS)
    return source.choice(values.values())


def _optuna_batches(maker: PointMaker, seed: int) -> Search:
    """Batches of points from a seeded TPE sampler; the same scores give the same points again."""
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(logging.WARNING)
    spec = maker.sweep.search
    study = optuna.create_study(
        direction="maximize",
        # Multivariate and grouped sampling are experimental and warn; the plain one is enough.
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(spec.batch, 8)),
    )
    left, refused = spec.points or 1, 0
    while left > 0 and refused < DRAWS_PER_POINT * spec.batch:
        trials: list[tuple[Trial, Point]] = []
        while len(trials) < min(spec.batch, left) and refused < DRAWS_PER_POINT * spec.batch:
            trial = study.ask()
            try:
                trials.append((trial, _proposed(maker, trial)))
            except ConfigError:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                refused += 1
        if not trials:
            break
        scores = yield list({point.content: point for _, point in trials}.values())
        for trial, point in trials:
            if point.name in scores:
                study.tell(trial, scores[point.name])
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        left -= len(trials)


def _proposed(maker: PointMaker, trial: Trial) -> Point:
    """The point that Optuna proposes; an entry's keys are parameters of that entry alone."""
    place = trial.suggest_categorical("merge", list(_places(maker)))
    values: dict[str, Any] = {}
    for key, each in maker.sweep.merges[place].vary.items():
        name = f"{place}.{key}"
        if isinstance(each, Range) and each.is_continuous:
            number = trial.suggest_float(name, each.from_, each.to, log=each.log)
            values[key] = float(f"{number:.{DIGITS}g}")
        else:
            known = each.values() if isinstance(each, Range) else each
            # By place: Optuna's choices may be numbers and text, but no sections or lists.
            values[key] = known[trial.suggest_categorical(name, list(range(len(known))))]
    return maker.make(place, values)
