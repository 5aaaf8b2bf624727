"""From what varies to the merges of a sweep: every one is checked before anything starts."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nan_merge.config_messages import did_you_mean
from nan_merge.errors import ConfigError
from nan_merge.fingerprint import digest_text
from pipelines.config import MergeEntry, RunConfig
from pipelines.preflight import check_recipe, checked
from pipelines.run_folder import slug
from pipelines.sweep_config import Range, Sweep, tidy

MAX_LISTED = 10
# A section's short form -> the key of its long form that holds it.
LONG_FORMS = {"method": "name", "coefficients": "source"}


@dataclass(frozen=True)
class Point:
    """One merge of a sweep.

    Attributes:
        entry: The merge, as a run file would hold it.
        group: Label of the entry of `sweep.merges` that it comes from.
        values: What varies -> its value here.
        folder: Its name as a folder.
    """

    entry: MergeEntry
    group: str
    values: dict[str, Any]
    folder: str

    @property
    def name(self) -> str:
        """Row of the table."""
        return self.entry.name

    @property
    def content(self) -> str:
        """All that decides the result, as text."""
        return json.dumps(self.entry.model_dump(mode="json", exclude={"name"}), sort_keys=True)


class PointMaker:
    """Turns values into points of a run's sweep, refusing those that no recipe may have."""

    def __init__(self, config: RunConfig, sweep: Sweep) -> None:
        self._config, self.sweep = config, sweep
        self._labels = labels_of(sweep)

    def make(self, place: int, values: Mapping[str, Any]) -> Point:
        """The point of an entry of `sweep.merges` that has these values.

        Raises:
            ConfigError: If no recipe may have them; the message has a line for every problem.
        """
        merge, label = self.sweep.merges[place], self._labels[place]
        name = _point_name(label, values)
        content = {**merge.template(), "name": name}
        for key in sorted(values, key=lambda key: key.count(".")):
            _set(content, key, values[key])
        entry = checked(MergeEntry, content, name)
        self._check_recipe(entry)
        folder = f"{slug(name)[:80]}-{digest_text(name)[:8]}"
        return Point(entry, label, dict(values), folder)

    def _check_recipe(self, entry: MergeEntry) -> None:
        """Check the merge against the run's models by name; their files may not be there yet."""
        names = self._config.model_names()
        for unknown in [name for name in entry.models or () if name not in names]:
            raise ConfigError(
                f"{entry.name}: models: there is no model {unknown!r}, have {', '.join(names)}"
                f"{did_you_mean(unknown, names, '.')}"
            )
        if entry.adamerging is not None:
            raise ConfigError(
                f"{entry.name}: adamerging: a sweep learns no coefficients. Put this merge under "
                "`merges`."
            )
        check_recipe(entry, names)


def labels_of(sweep: Sweep) -> list[str]:
    """What names of points begin with; entries that would share a label are numbered."""
    labels = [merge.label for merge in sweep.merges]
    counts, seen = Counter(labels), Counter[str]()
    numbered: list[str] = []
    for label in labels:
        seen[label] += 1
        numbered.append(label if counts[label] == 1 else f"{label} {seen[label]}")
    return numbered


def grid_points(maker: PointMaker) -> list[Point]:
    """Every combination of every entry, without repetitions.

    Raises:
        ConfigError: If there are too many, none, or some that no recipe may have.
    """
    refuse_endless(maker.sweep)
    refuse_too_many(maker.sweep)
    wanted = [
        (place, dict(zip(merge.vary, combination, strict=True)))
        for place, merge in enumerate(maker.sweep.merges)
        for combination in itertools.product(*(_listed(each) for each in merge.vary.values()))
    ]
    return checked_points(maker, wanted)


def checked_points(
    maker: PointMaker, wanted: Iterable[tuple[int, Mapping[str, Any]]]
) -> list[Point]:
    """Points of (entry's place, values), without repetitions.

    Raises:
        ConfigError: If some are invalid and the sweep does not leave them out, or none is left.
    """
    points: dict[str, Point] = {}
    problems: list[str] = []
    for place, values in wanted:
        try:
            point = maker.make(place, values)
        except ConfigError as error:
            problems.append(str(error))
            continue
        points.setdefault(point.content, point)
    if problems and not maker.sweep.skip_invalid:
        shown = [*problems[:MAX_LISTED]]
        if more := len(problems) - len(shown):
            shown.append(f"... and {more:,} more")
        are = "is none" if len(problems) == 1 else "are none"
        raise ConfigError(
            f"{len(problems):,} of the sweep's merges {are} that a recipe may have:\n"
            + "\n".join(shown)
            + "\nChange `vary`, put them into an entry of their own, or leave them out with "
            "`sweep.skip_invalid: true`."
        )
    if not points:
        raise ConfigError(
            "The sweep has no points: no recipe may have any of its combinations. The first: "
            + next(iter(problems), "nothing varies")
        )
    _refuse_shared_names(list(points.values()))
    return list(points.values())


def refuse_endless(sweep: Sweep) -> None:
    """Refuse a grid over a range without steps.

    Raises:
        ConfigError: Names the keys.
    """
    keys = [key for merge in sweep.merges for key in merge.endless()]
    if keys:
        raise ConfigError(
            f"sweep: the range of {', '.join(dict.fromkeys(keys))} has no end of numbers, and a "
            "grid takes them all. Give it `steps` or `step`, or use `search: {name: random, "
            "points: 24}`."
        )


def refuse_too_many(sweep: Sweep) -> None:
    """Refuse a grid larger than `sweep.max_points`, without building it.

    Raises:
        ConfigError: Says how the number comes about.
    """
    sizes = [merge.size() or 0 for merge in sweep.merges]
    if sum(sizes) <= sweep.max_points:
        return
    place = max(range(len(sizes)), key=sizes.__getitem__)
    merge = sweep.merges[place]
    factors = " x ".join(f"{len(values):,} {key}" for key, values in merge.vary.items())
    raise ConfigError(
        f"The sweep has {sum(sizes):,} points, more than `sweep.max_points` "
        f"({sweep.max_points:,}); most of them are {labels_of(sweep)[place]}: {factors}. Give "
        "fewer values, draw some with `search: {name: random, points: 24}`, or raise "
        "`sweep.max_points`."
    )


def _listed(values: tuple[Any, ...] | Range) -> Sequence[Any]:
    return values.values() if isinstance(values, Range) else values


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, turning short forms on its way into long ones."""
    first, dot, rest = key.partition(".")
    if not dot:
        content[first] = value
        return
    section = content.get(first)
    if isinstance(section, str):
        section = {LONG_FORMS.get(first, first): section}
    elif isinstance(section, list | tuple):
        section = {"source": "fixed", "values": section}
    elif not isinstance(section, dict):
        section = {}
    content[first] = dict(section)
    _set(content[first], rest, value)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Dotted keys -> their last parts; those that would share one stay whole.

    >>> short_keys(["method.density", "coefficients.scope"])
    {'method.density': 'density', 'coefficients.scope': 'scope'}
    """
    last = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(last.values())
    return {key: short if counts[short] == 1 else key for key, short in last.items()}


def value_words(value: Any) -> str:
    """A value in a name: `nan task_vector` for a section, `a+b` for a list."""
    if isinstance(value, Mapping):
        return " ".join(value_words(each) for each in value.values())
    if isinstance(value, list | tuple):
        return "+".join(value_words(each) for each in value)
    if isinstance(value, float):
        return str(tidy(value))  # 1.0 and 1 are the same number
    return "none" if value is None else str(value)


def _point_name(label: str, values: Mapping[str, Any]) -> str:
    if not values:
        return label
    names = short_keys(values)
    words = [f"{names[key]}={value_words(value)}" for key, value in values.items()]
    return f"{label}, {', '.join(words)}"


def _refuse_shared_names(points: Sequence[Point]) -> None:
    counts = Counter(point.name for point in points)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(
            f"sweep.merges: two different merges are both called {twice[0]!r}. Give their entries "
            "a `name` each."
        )
