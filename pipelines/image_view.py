"""Show what image towers answered, sample by sample."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.text import Text

from evaluators.predictions import Prediction, read_predictions
from nan_merge.errors import ConfigError
from pipelines.flips import Flips
from pipelines.image_records import SUFFIX, read_image_info


def holds_images(folder: Path) -> bool:
    """Whether there are predictions of images in a folder or below it."""
    return next(folder.rglob(f"*{SUFFIX}"), None) is not None


def show_image_predictions(
    folder: Path,
    console: Console,
    *,
    benchmark: str | None = None,
    sample: str | None = None,
    wrong: bool = False,
    limit: int = 10,
    flips: Flips | None = None,
) -> int:
    """Print the answers in a folder; for the arguments see `show_predictions`.

    Returns:
        How many samples were shown.

    Raises:
        ConfigError: If no record is of this benchmark, or none has this sample.
        DataError: If a record is damaged.
    """
    num_shown, is_known = 0, False
    for described in sorted(folder.rglob(f"*{SUFFIX}")):
        path = described.with_name(described.name.removesuffix(SUFFIX) + ".jsonl")
        info = read_image_info(path)
        if benchmark not in (None, info.benchmark) or not path.is_file():
            continue
        only = flips.get(info.benchmark, frozenset()) if flips is not None else None
        asked = [
            each
            for each in read_predictions(path, Prediction)
            if sample in (None, each.sample_id) and (only is None or each.sample_id in only)
        ]
        is_known = is_known or bool(asked)
        found = [each for each in asked if not (wrong and each.is_correct)][:limit]
        num_shown += len(found)
        if asked:
            print_title(console, info.model, info.benchmark, len(found), len(asked))
            for each in found:
                console.print(_line(each), soft_wrap=True)
    if not is_known:
        what = f"a sample {sample}" if sample is not None else "such samples"
        place = f" of {benchmark}" if benchmark is not None else ""
        raise ConfigError(f"{folder} holds no answer to {what}{place}.")
    return num_shown


def print_title(
    console: Console, model: str, benchmark: str, num_shown: int, num_asked: int
) -> None:
    """A rule across the console, above the samples of one record."""
    title = f"{model}: {benchmark}, {num_shown:,} of {num_asked:,} samples"
    console.rule(Text(title, style="bold"))


def _line(prediction: Prediction) -> Text:
    verdict, style = ("right", "green") if prediction.is_correct else ("wrong", "red")
    share = math.exp(prediction.log_probability)
    text = Text(f"{prediction.sample_id}: ")
    text.append(verdict, style)
    text.append(f"  answer {prediction.answer} ({share:.2f}), gold {prediction.target}")
    return text
