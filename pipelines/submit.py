"""Send a run to a cluster as a Ray job: its files, the command, the log, the exit code.

Nothing travels but the run file, as it stands after its overrides, and the model configuration
that it may name. Models, data, caches and results stay where they are: on storage that every node
of the cluster reaches under the same path.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from nan_merge.errors import ConfigError, NanMergeError
from pipelines.config import MergeEntry, RunConfig
from pipelines.language_benchmarks import is_own_benchmark
from pipelines.paths import placed, placed_at, placed_store, places_of, table_of
from pipelines.preflight import check_merges
from pipelines.sweep_config import SweepMerge

if TYPE_CHECKING:
    from cluster.jobs import JobClient, JobEnd

RUN_FILE = "run.yaml"
COMMAND = f"nan-merge run {RUN_FILE} cluster.address=auto"
FAILED, COMMAND_NOT_FOUND, INTERRUPTED = 2, 127, 130


def submit_run(
    config: RunConfig,
    address: str,
    console: Console,
    *,
    storage: str | None = None,
    seeds: int = 1,
    wait: bool = True,
) -> int:
    """Send a run to a cluster and follow its log until it ends.

    Args:
        config: The run.
        address: URL of the cluster's dashboard.
        console: Where the log goes.
        storage: Folder that every node reaches; the run's relative paths are taken from there.
        seeds: As in `nan-merge run`.
        wait: Follow the job; otherwise return as soon as it is sent.

    Returns:
        The job's exit code; 0 if it is not waited for.

    Raises:
        ConfigError: If the run names paths that cannot exist on the cluster, or merges that no
            recipe may have; lists all of them.
        NanMergeError: If the cluster cannot be reached, or does not have nan-merge.
    """
    check_merges(config)
    placed = place_paths(config, storage)
    from cluster.jobs import JobClient

    client = JobClient(address)
    with TemporaryDirectory(prefix="nan-merge-") as folder:
        write_bundle(placed, Path(folder))
        command = COMMAND if seeds == 1 else f"{COMMAND} --seeds {seeds}"
        job = client.submit(command, Path(folder), placed.name)
    _say(console, f"Job {job} is sent to {client.url}; results go to {placed.folder} there.")
    _say_versions(console, client)
    if not wait:
        _say(console, how_to_go_on(job, client.url))
        return 0
    return _follow(client, job, console)


def _follow(client: JobClient, job: str, console: Console) -> int:
    def write(text: str) -> None:
        console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    try:
        end = client.follow(job, write)
    except KeyboardInterrupt:
        _say(console, f"\nThe job goes on without this command.\n{how_to_go_on(job, client.url)}")
        return INTERRUPTED  # not raised: "run the same command again" would send a second job
    except NanMergeError as error:
        raise NanMergeError(
            f"{error} The job may still run there.\n{how_to_go_on(job, client.url)}"
        ) from error
    return exit_code_of(end, job)


def exit_code_of(end: JobEnd, job: str) -> int:
    """The exit code that tells a shell how the job ended.

    Raises:
        NanMergeError: If it did not even begin, with the reason.
    """
    if end.exit_code == COMMAND_NOT_FOUND:
        raise NanMergeError(
            "The cluster has no command `nan-merge`. Install nan-merge in the image or the "
            "environment of its head and workers (docs/clusters.md), then submit again."
        )
    if end.status == "SUCCEEDED":
        return 0
    if end.status == "STOPPED":
        raise NanMergeError(
            f"Job {job} was stopped. Submit the same run again: it continues where it stood."
        )
    if end.exit_code is None:
        reason = " ".join(end.message.split())[:500] or "Ray does not say why"
        raise NanMergeError(f"Job {job} did not run: {reason}")
    # A signal is negative here, and 128 and more for a shell.
    return 128 - end.exit_code if end.exit_code < 0 else end.exit_code or FAILED


def how_to_go_on(job: str, url: str) -> str:
    """Ray's own commands about a job."""
    tail = f"--address {shlex.quote(url)} {job}"
    return (
        f"Follow    ray job logs --follow {tail}\n"
        f"Status    ray job status {tail}\n"
        f"Stop      ray job stop {tail}"
    )


def write_bundle(config: RunConfig, folder: Path) -> None:
    """Everything that travels: the run file and the model configuration that it may name."""
    content = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    experts = config.experts
    if experts is not None and experts.backbone.endswith(".json"):
        source = Path(experts.backbone).expanduser()
        if not source.is_file():
            raise ConfigError(f"experts.backbone: there is no file {source}.")
        shutil.copy(source, folder / source.name)
        content["experts"]["backbone"] = source.name
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / RUN_FILE).write_text(text, encoding="utf-8")


def place_paths(config: RunConfig, storage: str | None) -> RunConfig:
    """The run with every path as the cluster will look for it.

    Args:
        config: A run whose relative paths are meant from here.
        storage: Absolute folder on the cluster that they are meant from there; if None, they are
            refused, because a job's own folder is gone when it ends.

    Raises:
        ConfigError: Lists every path that cannot exist on the cluster.
    """
    if storage is not None and not PurePosixPath(storage).is_absolute():
        raise ConfigError(
            f"--storage {storage} is relative, but names a folder on the cluster. Give its whole "
            "path there, e.g. --storage /shared/me."
        )
    if storage is None and (relative := list(_relative_paths(config))):
        lines = "\n".join(f"  - {line}" for line in relative)
        raise ConfigError(
            f"These paths are relative to this machine, where the cluster does not look:\n{lines}\n"
            "Name a folder that every node of the cluster reaches with `--storage DIR`, and put "
            "the models there under the same relative paths; or give whole paths, hub ids or URLs."
        )
    return placed_at(config, PurePosixPath(storage or "/"))


def _relative_paths(config: RunConfig) -> Iterator[str]:
    folders = {"run_folder": str(config.folder), "cache": str(config.cache)}
    for field, text in folders.items():
        if not PurePosixPath(text).is_absolute():
            yield f"{field}: {text}"
    models = {f"models.{place}": model.path for place, model in enumerate(config.models)}
    for name, entry in _entries_of(config):
        models |= {f"{name}.{key}": path for key, path in places_of(entry).items()}
    for field, text in {"base": config.base, "clip": config.clip, **models}.items():
        if text is not None and placed(text, PurePosixPath("/")) != text:
            yield f"{field}: {text}"
    for field, text in (*_benchmark_paths(config), *_files_of_merges(config)):
        if not PurePosixPath(text).is_absolute():
            yield f"{field}: {text}"
    uri = config.track.uri
    if uri is not None and placed_store(uri, PurePosixPath("/")) != uri:
        yield f"track.uri: {uri}"


def _files_of_merges(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What merges read besides models: statistics, training texts, tables of coefficients."""
    for place, model in enumerate(config.models):
        if model.statistics is not None:
            yield f"models.{place}.statistics", model.statistics
    for name, path in config.statistics.texts.items():
        yield f"statistics.texts.{name}", str(path)
    for name, entry in _entries_of(config):
        if (table := table_of(entry)) is not None:
            yield f"{name}.coefficients.table", table


def _entries_of(config: RunConfig) -> Iterator[tuple[str, MergeEntry | SweepMerge]]:
    """Every merge and what a sweep varies, by its place in the run file."""
    sweep = config.sweep.merges if config.sweep is not None else ()
    for section, entries in (("merges", config.merges), ("sweep.merges", sweep)):
        for place, entry in enumerate(entries):
            yield f"{section}.{place}", entry


def _benchmark_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Folders of data, and files of benchmarks of one's own, by their place in the run file."""
    if not config.evaluate.is_language and not config.evaluate.clip_sets:
        return
    if config.evaluate.data is not None:
        yield "evaluate.data", str(config.evaluate.data)
    if config.evaluate.clip_sets:
        return
    for place, spec in enumerate(config.evaluate.language_benchmarks):
        if is_own_benchmark(spec.name):
            yield f"evaluate.benchmarks.{place}", spec.name
        if spec.data is not None:
            yield f"evaluate.benchmarks.{place}.data", str(spec.data)


def _say_versions(console: Console, client: JobClient) -> None:
    from ray import __version__ as ours

    if client.ray_version != ours:
        _say(
            console,
            f"note: the cluster runs Ray {client.ray_version}, this machine {ours}. The job uses "
            "the cluster's.",
        )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
