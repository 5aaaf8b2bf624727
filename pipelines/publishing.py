"""At the end of a run: what is written, pushed, recorded and printed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nan_merge.errors import NanMergeError
from nan_merge.manifest import MANIFEST_NAME, read_manifest
from nan_merge.methods import METHODS
from nan_merge.publish import write_text_atomically
from nan_merge.recipe import MergeRecipe
from nan_merge.shares import SHARES
from pipelines.config import INDIVIDUAL, RunConfig
from pipelines.evaluate import Candidate
from pipelines.merge import repair_notes, uniformity_notes
from pipelines.progress import RunProgress
from pipelines.push import place_of_merge, push
from pipelines.report import write_report
from pipelines.results import RunResults, write_results
from pipelines.sheet import rich_table
from pipelines.sweep_table import shown_results, sweep_sheet, write_sweep
from pipelines.table import results_table
from pipelines.tracking import TrackingError, comparison_path, how_to_look, track_run

Merges = Sequence[tuple[str, MergeRecipe, Path]]


def publish_results(
    results: RunResults,
    config: RunConfig,
    candidates: Sequence[Candidate],
    merges: Merges,
    progress: RunProgress,
    notes: Sequence[str] = (),
) -> None:
    """Write the results, print them, and record them.

    Args:
        results: What the run found.
        config: The run.
        candidates: Every model that was scored.
        merges: Name, recipe and folder of every merge; in the folder is at least its manifest.
        progress: Where to print.
        notes: What else a reader should know.
    """
    folder, shown = config.folder, shown_results(results)
    rows = write_results(results, folder)
    write_text_atomically(folder / "config.yaml", results.config_yaml)
    report = write_report(results, folder, config.published)
    progress.console.print(results_table(shown, progress.console.width))
    if results.sweep:
        write_sweep(results, folder)
        progress.console.print(rich_table(sweep_sheet(results), progress.console.width))
    for note in [*notes_of(results, merges), *notes]:
        progress.say(note)
    pushed = _push(results, config, merges, progress) if config.track.push else {}
    look: list[str] = []
    if config.track.mlflow:
        look = _record(results, config, candidates, merges, pushed, progress)
    progress.say(f"\nResults   {rows}\nReport    {report}   (open it in a browser)")
    progress.say(f"Show      {command('nan-merge')} show {folder}")
    for number, line in enumerate(look):
        progress.say(f"{'          ' if number else 'MLflow    '}{line}")


def _record(
    results: RunResults,
    config: RunConfig,
    candidates: Sequence[Candidate],
    merges: Merges,
    pushed: dict[str, str],
    progress: RunProgress,
) -> list[str]:
    """Record in MLflow; lines that say how to look at it, none if it could not be recorded."""
    folder, num_models = config.folder, len(results.models())
    try:
        with progress.stage("Recording in MLflow", num_models, "models") as bar:
            uri = track_run(
                results,
                folder,
                config.track,
                manifests={name: path / MANIFEST_NAME for name, _, path in merges},
                predictions={item.name: item.predictions for item in candidates},
                checkpoints=_kept_or_record(results, config, merges),
                pushed=pushed,
                on_model=lambda model: bar.advance(1, model),
            )
            page = comparison_path(results, folder, config.track)
    except TrackingError as error:
        progress.say(f"warning: {error}")
        return []
    return how_to_look(uri, page, command("mlflow"))


def _kept_or_record(results: RunResults, config: RunConfig, merges: Merges) -> dict[str, Path]:
    """Merges to register -> their checkpoints or, of those that are gone, their manifests."""
    if config.track.register_as is None:
        return {}
    kept = {merge.model: merge.folder for merge in results.merges}
    return {
        name: config.folder / kept[name] if kept.get(name) else path
        for name, _, path in merges
        if name in chosen_merges(results)
    }


def chosen_merges(results: RunResults) -> list[str]:
    """The merges that are registered and pushed: a sweep's selected ones, or all of a run."""
    names = [merge.model for merge in results.merges]
    if not results.sweep:
        return names
    return [name for name in names if name in results.sweep and results.sweep[name].is_selected]


def _push(
    results: RunResults, config: RunConfig, merges: Merges, progress: RunProgress
) -> dict[str, str]:
    """Copy the chosen checkpoints to where the run file says: merge -> its place.

    What fails is said and does not end the run: the checkpoint is here, and `nan-merge push` is
    there to try again.
    """
    destination, kept = config.track.push, {each.model: each.folder for each in results.merges}
    assert destination is not None
    pushed: dict[str, str] = {}
    chosen = chosen_merges(results)
    with progress.stage(f"Pushing {len(chosen)} checkpoints", len(chosen), "checkpoints") as bar:
        for name in chosen:
            place = place_of_merge(destination, name)
            if not kept[name]:
                progress.say(f"warning: {name} is not pushed: `sweep.keep: none` removed it.")
                continue
            try:
                pushed[name] = push(config.folder / kept[name], place)
            except NanMergeError as error:
                progress.say(f"warning: {error}")
            bar.advance(1, name)
    return pushed


def notes_of(results: RunResults, merges: Sequence[tuple[str, MergeRecipe, Path]]) -> list[str]:
    """What a reader of the table should know: a row that is missing, weights that are equal."""
    notes: list[str] = []
    if not any(row.kind == "individual" for row in results.rows):
        notes.append(
            f"note: there is no row {INDIVIDUAL}, because no fine-tuned model is called like a "
            f"benchmark ({', '.join(results.benchmarks())}); it scores each model on its own."
        )
    for name, recipe, path in merges:
        point = results.sweep.get(name)
        tells = recipe.coefficients.source in SHARES or METHODS[recipe.method.name].reads
        if tells and (point is None or point.is_selected):
            manifest = read_manifest(path / MANIFEST_NAME)
            found = [*uniformity_notes(manifest), *repair_notes(manifest)]
            notes += [f"note: {name}: {note}" for note in found]
    return notes


def command(name: str) -> str:
    """How to call a command of this environment from the shell that is open now."""
    own = Path(sys.prefix) / "bin" / name
    if shutil.which(name) == str(own) or not own.exists():
        return name
    with suppress(ValueError):
        return str(own.relative_to(Path.cwd()))
    return str(own)
