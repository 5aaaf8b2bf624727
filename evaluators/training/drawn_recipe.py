"""How a miniature LLaVA is trained: a section of the run file."""

from __future__ import annotations

from pydantic import Field

from evaluators.training.drawn_questions import Skill
from nan_merge.schema import StrictModel


class DrawnRecipe(StrictModel):
    """How a miniature LLaVA is trained on drawn pictures."""

    skills: tuple[Skill, ...] = ("colour", "count", "place")
    """What it learns; of every benchmark the questions that ask for one of these."""
    steps: int = Field(default=400, gt=0)
    """Optimiser steps; pictures are new in each."""
    batch_size: int = Field(default=32, gt=0)
    """Questions in a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW at its peak; it rises linearly, and falls to 0 in the last 3 tenths of the steps."""
    warmup_steps: int = Field(default=40, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
