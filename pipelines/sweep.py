"""A sweep: many merges, searched on a dev split, shown on the samples that the search never saw.

It takes the way of `pipelines.run`, in waves: merges over the same models are written in one
reading, each is loaded once for all benchmarks, and its checkpoint may go when it is scored. What
was scored is known by the records of `pipelines.sweep_records`, so a sweep that was killed, or
that got further points, goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from nan_merge.errors import CoefficientError, ConfigError, IncompatibleError, NanMergeError
from nan_merge.manifest import MANIFEST_NAME, read_manifest
from nan_merge.recipe import MergeRecipe
from pipelines.collect import environment_facts, merge_summary
from pipelines.config import RunConfig
from pipelines.evaluate import Candidate
from pipelines.hub_layout import loss_notes, losses_of_copies
from pipelines.progress import RunProgress
from pipelines.publishing import publish_results
from pipelines.results import MergeSummary, RunResults, SweepPoint
from pipelines.run import (
    RunModels,
    list_candidates,
    make_merges,
    merges_of,
    norms_of,
    open_workers,
    prepare_models,
    recipe_of,
)
from pipelines.scoring import Scoring, Values, open_scoring
from pipelines.split import dev_part, held_out_part, refuse_empty_parts
from pipelines.sweep_config import Sweep
from pipelines.sweep_points import Point, PointMaker
from pipelines.sweep_records import (
    checkpoint_of,
    known_identity,
    record_folder,
    remove_checkpoint,
    wave_size,
    write_record,
)
from pipelines.sweep_search import Search, fewer_than_asked, open_search
from pipelines.workers import Workers

Merge = tuple[str, MergeRecipe, Path]  # name, recipe, checkpoint folder


@dataclass
class _State:
    """What a sweep stands on, and what it has found by now."""

    config: RunConfig
    sweep: Sweep
    models: RunModels
    workers: Workers
    progress: RunProgress
    scoring: Scoring
    earlier: Sequence[Path] = ()
    points: dict[str, Point] = field(default_factory=dict[str, Point])
    identities: dict[str, dict[str, str] | None] = field(default_factory=dict[str, Any])
    objectives: dict[str, float] = field(default_factory=dict[str, float])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def merge(self, point: Point) -> Merge:
        recipe = recipe_of(point.entry, self.models, self.config.seed)
        return point.name, recipe, checkpoint_of(self.config.folder, point)

    def candidate(self, point: Point) -> Candidate:
        """A point as it is scored; its checkpoint may be gone."""
        predictions = self.config.folder / "predictions" / point.folder
        if point.name not in self.identities:
            recipe = self.merge(point)[1]
            self.identities[point.name] = known_identity(self.config.folder, point, recipe)
        identity = self.identities[point.name]
        earlier = tuple(each / "predictions" / point.folder for each in self.earlier)
        return Candidate(point.name, self.merge(point)[2], predictions, identity, earlier)

    def selected(self) -> list[Point]:
        """The best of every entry by now; the earlier one where two are equal."""
        best: dict[str, Point] = {}
        for point in self.points.values():
            score, other = self.objectives.get(point.name), best.get(point.group)
            if score is not None and (other is None or score > self.objectives[other.name]):
                best[point.group] = point
        return list(best.values())


def run_sweep(
    config: RunConfig,
    progress: RunProgress,
    checks: Sequence[Callable[[], None]],
    earlier: Sequence[Path] = (),
) -> RunResults:
    """Search among merges, score them, and write and record what was found.

    Args:
        config: The run.
        progress: Where it says how far it is.
        checks: Called now and then; may raise to stop.
        earlier: Folders of the same run with other seeds.

    Raises:
        NanMergeError: With a message for the user.
    """
    started, sweep = time.monotonic(), config.sweep
    assert sweep is not None
    refuse_unknown_objective(config, sweep)
    search = open_search(PointMaker(config, sweep), config.seed)
    with open_workers(config, progress, checks) as workers:
        models = prepare_models(config, workers)
        scoring = open_scoring(config, models, workers)
        refuse_empty_parts(scoring.clusters, sweep.dev_share)
        like = _recipes(config, models)
        losses = losses_of_copies(models.base, models.models, like)
        norms = norms_of(config.folder, models, workers, like)
        state = _State(config, sweep, models, workers, progress, scoring, earlier)
        _search(state, search)
        make_merges(_kept_merges(state), workers, _statistics(config))
        _tidy(state)
        shutil.rmtree(_statistics(config), ignore_errors=True)
        merges, candidates = _everything_scored(state)
        held_out = scoring.collect(merges, candidates, held_out_part(sweep.dev_share))
        dev = scoring.collect(merges, candidates, dev_part(sweep.dev_share))
    results = RunResults(
        name=config.name,
        seed=config.seed,
        rows=held_out.rows,
        merges=tuple(_summary(state, merge) for merge in merges),
        failures=state.failures,
        facts=environment_facts()
        | held_out.facts
        | _sweep_facts(state)
        | losses
        | {"time of this run": f"{time.monotonic() - started:.0f} s, with what was cached"},
        config_yaml=config.text(),
        model_norms=norms,
    )
    dev_results = dev.with_averages(replace(results, rows=dev.rows))
    results = replace(held_out.with_averages(results), sweep=_sweep_points(state, dev_results))
    notes = [*held_out.notes, *loss_notes(losses)]
    publish_results(results, config, candidates, merges, progress, notes)
    return results


def refuse_unknown_objective(config: RunConfig, sweep: Sweep) -> None:
    """Refuse to maximise what is not measured.

    Raises:
        ConfigError: Names what there is.
    """
    wanted = config.evaluate
    names = [each if isinstance(each, str) else each.name for each in wanted.benchmarks]
    if sweep.objective not in ("average", *names):
        raise ConfigError(
            f"sweep.objective: {sweep.objective!r} is not measured, have average, "
            f"{', '.join(names)}."
        )


def _search(state: _State, search: Search) -> None:
    """Make and score what the search asks for, until it asks no more."""
    fixed = merges_of(state.config, state.models)
    try:
        batch = next(search)
        if fewer := fewer_than_asked(state.sweep, len(batch)):
            state.progress.say(f"note: {fewer}")
        while True:
            for point in batch:
                state.points.setdefault(point.name, point)
            _answer(state, batch, fixed)
            fixed = []
            found = {point.name for point in batch} & state.objectives.keys()
            batch = search.send({name: state.objectives[name] for name in found})
    except StopIteration:
        pass
    if not state.objectives:
        name, why = next(iter(state.failures.items()))
        raise ConfigError(f"None of the sweep's merges could be made. {name}: {why}")


def _answer(state: _State, batch: Sequence[Point], fixed: Sequence[Merge]) -> None:
    """Merge and score the points of a batch that are not scored yet, in waves."""
    new = [point for point in batch if point.name not in state.objectives | state.failures]
    known = [point for point in new if _is_scored(state, point)]
    todo = [point for point in new if point not in known]
    if known:
        state.progress.say(f"{len(known)} of {len(new)} merges were scored before.")
        _note_objectives(state, known, _values(state, map(state.candidate, known)))
    if not todo:
        make_merges(fixed, state.workers, _statistics(state.config))
        return
    folder = state.config.folder
    size = wave_size(folder, state.merge(todo[0])[1], state.sweep.keep)
    for first in range(0, len(todo), size):
        wave = todo[first : first + size]
        if len(todo) > size:
            state.progress.say(f"Merges {first + 1} to {first + len(wave)} of {len(todo)}")
        made = _make(state, wave, fixed if first == 0 else [])
        for point in made:
            identity = state.scoring.identity_of(checkpoint_of(folder, point))
            state.identities[point.name] = identity
        values = _values(state, map(state.candidate, made))
        for point in made:
            write_record(folder, point, state.identities[point.name] or {})
        _note_objectives(state, made, values)
        _tidy(state)


def _is_scored(state: _State, point: Point) -> bool:
    candidate = state.candidate(point)
    return candidate.identity is not None and state.scoring.is_answered(candidate)


def _make(state: _State, wave: Sequence[Point], fixed: Sequence[Merge]) -> list[Point]:
    """Merge a wave together; where one cannot be merged, the others are all the same."""
    statistics = _statistics(state.config)
    try:
        make_merges([*fixed, *map(state.merge, wave)], state.workers, statistics)
        return list(wave)
    except (CoefficientError, IncompatibleError):
        make_merges(fixed, state.workers, statistics)  # an error of theirs ends the run
    made: list[Point] = []
    for point in wave:
        try:
            make_merges([state.merge(point)], state.workers, statistics)
            made.append(point)
        except (CoefficientError, IncompatibleError) as error:
            state.failures[point.name] = str(error)
            state.progress.say(f"warning: {point.name} cannot be merged: {error}")
    return made


def _values(state: _State, candidates: Iterable[Candidate]) -> Values:
    """Scores on the dev split: all that the search and the selection see."""
    found = list(candidates)
    return state.scoring.values(found, dev_part(state.sweep.dev_share)) if found else {}


def _note_objectives(state: _State, points: Sequence[Point], values: Values) -> None:
    """Note what the search maximises of each point."""
    wanted = state.sweep.objective
    for point in points:
        own = {column: value for (name, column), value in values.items() if name == point.name}
        # A language benchmark's column may say more than its name.
        chosen = [
            value
            for column, value in own.items()
            if wanted == "average" or column == wanted or column.startswith(f"{wanted} ")
        ]
        state.objectives[point.name] = fmean(chosen or own.values())


def _kept(state: _State) -> list[Point]:
    """The points whose checkpoints stay."""
    scored = [point for point in state.points.values() if point.name in state.objectives]
    return {"all": scored, "best": state.selected(), "none": []}[state.sweep.keep]


def _kept_merges(state: _State) -> list[Merge]:
    """Those merges: one may be missing that was scored in an earlier run."""
    return [state.merge(point) for point in _kept(state)]


def _tidy(state: _State) -> None:
    """Remove the checkpoints that do not stay."""
    kept = {point.name for point in _kept(state)}
    for point in state.points.values():
        if point.name not in kept:
            remove_checkpoint(checkpoint_of(state.config.folder, point))


def _everything_scored(state: _State) -> tuple[list[Merge], list[Candidate]]:
    """All merges of the run and all its candidates; of a point, what its record keeps."""
    fixed = merges_of(state.config, state.models)
    like = _recipes(state.config, state.models)
    candidates = list_candidates(state.config, state.models, fixed, state.earlier, like)
    points = [point for point in state.points.values() if point.name in state.objectives]
    merges = [
        (point.name, state.merge(point)[1], record_folder(state.config.folder, point))
        for point in points
    ]
    return [*fixed, *merges], [*candidates, *map(state.candidate, points)]


def _recipes(config: RunConfig, models: RunModels) -> list[MergeRecipe]:
    """What merges say of parts, lacking tensors and configs, which nothing varies.

    One recipe for every merge and every entry of the sweep, over all models of the run.
    """
    assert config.sweep is not None
    content = {"base": models.base, "models": models.models, "method": "task_arithmetic"}
    return [
        MergeRecipe.model_validate(
            content | {"modules": each.modules, "missing": each.missing, "config": each.config}
        )
        for each in (*config.merges, *config.sweep.merges)
    ]


def _summary(state: _State, merge: Merge) -> MergeSummary:
    name, recipe, path = merge
    folder = state.config.folder
    point = state.points.get(name)
    kept = path if point is None else checkpoint_of(folder, point)
    summary = merge_summary(
        name, recipe, read_manifest(path / MANIFEST_NAME), kept.relative_to(folder)
    )
    return summary if kept.is_dir() else replace(summary, folder="")


def _sweep_points(state: _State, dev: RunResults) -> dict[str, SweepPoint]:
    selected = {point.name for point in state.selected()}
    found: dict[str, SweepPoint] = {}
    for name, objective in state.objectives.items():
        point, average = state.points[name], dev.average(name)
        if average is None:
            raise NanMergeError(f"{name} misses a benchmark of the dev split.")
        found[name] = SweepPoint(
            group=point.group,
            values=point.values,
            dev=average[0],
            dev_error=average[1],
            objective=objective,
            is_selected=name in selected,
        )
    return found


def _sweep_facts(state: _State) -> dict[str, str]:
    sweep = state.sweep
    part = dev_part(sweep.dev_share)
    sides = [
        f"{name} {sum(map(part, clusters))} of {len(clusters)}"
        for name, clusters in state.scoring.clusters.items()
    ]
    return {
        "search": f"{sweep.search.name}, {len(state.objectives)} merges scored, "
        f"{len(state.failures)} failed",
        "selected by": f"{sweep.objective} on the dev split",
        "dev split": f"{sweep.dev_share:g} of sources by hash; sources: {', '.join(sides)}",
    }


def _statistics(config: RunConfig) -> Path:
    """Where statistics are kept that all waves share, until the search is over."""
    return config.folder / "statistics"
