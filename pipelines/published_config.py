"""Numbers that were published elsewhere: a section of the run file."""

from __future__ import annotations

from pydantic import Field, model_validator

from nan_merge.config_messages import did_you_mean
from nan_merge.schema import StrictModel


class Published(StrictModel):
    """Numbers from elsewhere that the report shows beside the run's own."""

    source: str = Field(min_length=1)
    """Where they were published."""
    scores: dict[str, dict[str, float]] = Field(min_length=1)
    """Row of the published table -> benchmark -> score in percent; `{}` shows its average alone."""
    averages: dict[str, float] = Field(default_factory=dict)
    """Row of the published table -> its average as printed; the mean of its scores if absent."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Benchmark -> what the published table calls it; its own name if absent."""
    average_column: str = "average"
    """What the published table calls its average."""
    rows: dict[str, str] = Field(default_factory=dict)
    """Row of the published table -> the run's model that stands there, if it has another name."""
    differences: tuple[tuple[str, str], ...] = ()
    """Pairs of published rows; the first minus the second is shown, with an interval."""
    note: str = ""
    """What makes them other than the run's, e.g. other models."""

    @model_validator(mode="after")
    def _rows_are_those_of_the_scores(self) -> Published:
        named = {
            "averages": list(self.averages),
            "rows": list(self.rows),
            "differences": [row for pair in self.differences for row in pair],
        }
        for field, rows in named.items():
            for row in rows:
                if row not in self.scores:
                    near = did_you_mean(row, list(self.scores))
                    raise ValueError(f"{field}: {row!r} is no row of scores{near}")
        for row, scores in self.scores.items():
            if not scores and row not in self.averages:
                raise ValueError(f"scores.{row} is empty: name its scores, or its average")
        for name in self.columns:
            if name not in self.benchmarks:
                near = did_you_mean(name, self.benchmarks)
                raise ValueError(f"columns: {name!r} is no benchmark of scores{near}")
        return self

    @property
    def benchmarks(self) -> list[str]:
        """The table's columns without its average: those that ``columns`` names in its order."""
        names = dict.fromkeys(name for row in self.scores.values() for name in row)
        return list(dict.fromkeys([*(name for name in self.columns if name in names), *names]))

    def model_of(self, row: str) -> str:
        """The run's model that stands in a row of the published table."""
        return self.rows.get(row, row)
