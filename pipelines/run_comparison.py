"""The comparison that a finished run's report shows, kept as files in the run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from nan_merge.errors import ConfigError, NanMergeError
from nan_merge.publish import write_text_atomically
from pipelines.compare import Comparison, compare_runs
from pipelines.compare_view import comparison_json
from pipelines.compared_models import AnswerReader
from pipelines.extras import require
from pipelines.flips import flips_text
from pipelines.output_files import write_json

MOST_MODELS = 40
"""Of more, the report shows what the results hold alone: comparing each anew would take minutes."""
RESAMPLES = 2000

_logger = logging.getLogger(__name__)


def compare_finished_run(folder: Path, shown: Sequence[str]) -> Comparison | None:
    """Compare a run's models; write ``comparison.json`` and ``flips.jsonl`` beside its results.

    Args:
        folder: The run's.
        shown: The models to compare, beside the baseline.

    Returns:
        None if there is nothing to compare, or more than `MOST_MODELS`, or it cannot be compared;
        the reason is logged, for a run that is done must not fail here.
    """
    if not (folder / "run.json").is_file() or len(shown) > MOST_MODELS:
        return None
    try:
        require(["scipy", "statsmodels"])
        found = compare_runs([folder], None, AnswerReader(), RESAMPLES, only=shown)
    except ConfigError:
        return None  # one model alone
    except NanMergeError as error:
        _logger.warning("The models of %s are not compared: %s", folder, error)
        return None
    write_json(folder / "comparison.json", comparison_json(found))
    write_text_atomically(folder / "flips.jsonl", flips_text(found.flips))
    return found
