"""The section `cluster:` of a run file: where Ray runs, and what each stage's tasks need."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from nan_merge.schema import StrictModel

StageName = Literal["statistics", "merge", "evaluate", "train"]
RAYS_OWN = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


class StageResources(StrictModel):
    """What Ray sets aside for one task or model actor of a stage."""

    num_cpus: PositiveFloat = 1
    """CPU cores; a task of statistics or merging works in as many processes."""
    num_gpus: NonNegativeFloat | Literal["auto"] = 0.0  # pydantic warns of an int
    """GPUs, or a share of one; `auto` is 1 where the cluster has GPUs, else 0."""
    memory: PositiveInt | None = None
    """Bytes of memory; nothing is set aside if absent."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources, by the names that the nodes were started with."""

    @field_validator("resources")
    @classmethod
    def _rays_own_have_keys(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, key in RAYS_OWN.items():
            if name in resources:
                raise ValueError(f"{name} is no custom resource; use `{key}`")
        return resources


class Cluster(StrictModel):
    """Where Ray runs."""

    address: str = "local"
    """`local` starts Ray here and stops it at the end; `auto` joins the cluster this stands on."""
    num_workers: PositiveInt | None = None
    """Most workers at once, here or in the cluster joined; one per core if absent."""
    dashboard: bool = False
    """Start the dashboard of a local Ray, on this machine's own address only."""
    stall_seconds: PositiveFloat = 1800
    """A task that reports no progress, or a model actor that gives no answer, for so long is
    ended and replaced once. Loading a model is one answer."""
    statistics: StageResources = StageResources()
    """Tasks that measure norms, thresholds and signs."""
    merge: StageResources = StageResources(num_gpus="auto")
    """Tasks that write merged files."""
    evaluate: StageResources = StageResources(num_gpus="auto")
    """Actors that serve models."""
    train: StageResources = StageResources()
    """Tasks that train models and prepare data."""

    def resources_of(self, stage: StageName) -> StageResources:
        """What one stage's tasks need."""
        return getattr(self, stage)
