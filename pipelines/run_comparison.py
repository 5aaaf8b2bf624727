"""The comparison that a finished run's report shows, kept as files in the run folder."""

from __future__ import annotations

import logging
from pathlib import Path

from nan_merge.errors import ConfigError, NanMergeError
from nan_merge.publish import write_text_atomically
from pipelines.compare import Comparison, compare_runs
from pipelines.compare_view import comparison_json
from pipelines.compared_models import AnswerReader, read_run
from pipelines.extras import require
from pipelines.flips import flips_text
from pipelines.output_files import write_json

MOST_MODELS = 40
"""Of a run with more, a sweep as a rule, the report shows what its results hold alone: comparing
each anew would take minutes."""
RESAMPLES = 2000

_logger = logging.getLogger(__name__)


def compare_finished_run(folder: Path) -> Comparison | None:
    """Compare a run's models; write ``comparison.json`` and ``flips.jsonl`` beside its results.

    Returns:
        None if there is nothing to compare, or more than `MOST_MODELS`, or it cannot be compared;
        the reason is logged, for a run that is done must not fail here.
    """
    if not (folder / "run.json").is_file():
        return None
    try:
        require(["scipy", "statsmodels"])
        if len(read_run(folder).predictions) > MOST_MODELS:
            return None
        found = compare_runs([folder], None, AnswerReader(), RESAMPLES)
    except ConfigError:
        return None  # one model alone
    except NanMergeError as error:
        _logger.warning("The models of %s are not compared: %s", folder, error)
        return None
    write_json(folder / "comparison.json", comparison_json(found))
    write_text_atomically(folder / "flips.jsonl", flips_text(found.flips))
    return found
