"""Records that wait on disk for an MLflow server: what `nan-merge track sync` sends.

The file `mlflow_pending.json` in a run folder is written before anything is sent and removed when
all of it has arrived, so neither a server that is down nor a kill loses a record. It holds paths
and an address without passwords; the results themselves are in the run folder already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.errors import DataError
from nan_merge.publish import write_text_atomically
from pipelines.masking import hide_passwords

if TYPE_CHECKING:
    from pipelines.config import Track
    from pipelines.tracking_record import Files

PENDING_NAME = "mlflow_pending.json"


@dataclass(frozen=True)
class Pending:
    """What a run has still to tell MLflow.

    Attributes:
        uri: The server, without a password; None for SQLite in the run folder.
        experiment: As in the run file.
        register_as: As in the run file.
        manifests: Model -> its manifest, relative to the run folder where it lies there.
        predictions: Model -> its predictions, likewise.
        checkpoints: Merged model -> its checkpoint, if it is registered, likewise.
        pushed: Merged model -> where its checkpoint was copied to.
        upload_weights: As in the run file.
        marks: Merged model -> verdict, of those that passed a gate meanwhile.
    """

    uri: str | None = None
    experiment: str | None = None
    register_as: str | None = None
    manifests: dict[str, str] = field(default_factory=dict[str, str])
    predictions: dict[str, str] = field(default_factory=dict[str, str])
    checkpoints: dict[str, str] = field(default_factory=dict[str, str])
    pushed: dict[str, str] = field(default_factory=dict[str, str])
    upload_weights: bool = False
    marks: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    @staticmethod
    def of(folder: Path, config: Track, files: Files) -> Pending:
        """What a run is about to record."""
        before = read_pending(folder)
        return Pending(
            uri=hide_passwords(config.uri) if config.uri else None,
            experiment=config.experiment,
            register_as=config.register_as,
            manifests=_relative(files.manifests, folder),
            predictions=_relative(files.predictions, folder),
            checkpoints=_relative(files.checkpoints, folder),
            pushed=dict(files.pushed),
            upload_weights=config.upload_weights,
            marks=before.marks if before else {},
        )

    def paths(self, folder: Path, kind: str) -> dict[str, Path]:
        """The files of one kind, as paths."""
        return {model: folder / path for model, path in getattr(self, kind).items()}


def _relative(files: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Paths that stay right when the run folder is moved, as far as they lie in it."""
    inside: dict[str, str] = {}
    for model, path in files.items():
        absolute, root = path.absolute(), folder.absolute()
        inside[model] = str(
            absolute.relative_to(root) if absolute.is_relative_to(root) else absolute
        )
    return inside


def hold_pending(folder: Path, pending: Pending) -> None:
    """Write down what is about to be sent."""
    text = json.dumps(asdict(pending), indent=1, ensure_ascii=False) + "\n"
    write_text_atomically(folder / PENDING_NAME, text)


def read_pending(folder: Path) -> Pending | None:
    """What waits in a run folder; None if nothing does.

    Raises:
        DataError: If the file is damaged.
    """
    path = folder / PENDING_NAME
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Pending(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Remove it and run the same command again; the results "
            "are beside it."
        ) from error


def forget_pending(folder: Path) -> None:
    """All has arrived but marks, which stay until they are set."""
    pending = read_pending(folder)
    if pending is None or not pending.marks:
        (folder / PENDING_NAME).unlink(missing_ok=True)


def waiting_folders(parent: Path) -> list[Path]:
    """Run folders below a folder in which records wait, sorted."""
    return sorted(path.parent for path in parent.glob(f"**/{PENDING_NAME}"))
