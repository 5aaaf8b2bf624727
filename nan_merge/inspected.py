"""What `nan_merge.inspection` finds, and the numbers that follow from it.

The paper of NAN (arXiv 2505.16148) derives its coefficients for parameters of mean zero, so that a
norm is a spread: ``norm² / n = std² + mean²``. `Moments.mean_share` is how much of the squared norm
is the mean's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nan_merge.norms import Matrix

Counts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Moments:
    """Sums over the n elements of some tensors of one model.

    Attributes:
        count: n.
        total: Sum of the elements.
        squares: Sum of their squares.
    """

    count: int
    total: float
    squares: float

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(self.squares)

    @property
    def mean(self) -> float:
        """Mean of the elements; 0 if there are none."""
        return self.total / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Standard deviation about the mean (divided by n)."""
        if not self.count:
            return 0.0
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0))

    @property
    def mean_over_std(self) -> float | None:
        """The mean in standard deviations; None if all elements are equal."""
        return self.mean / self.std if self.std else None

    @property
    def t_ratio(self) -> float | None:
        """``mean / (std / √n)``: beyond about 2, the mean is not zero by chance.

        It takes elements for independent, which weights are not, so it says too much.
        """
        ratio = self.mean_over_std
        return None if ratio is None else ratio * math.sqrt(self.count)

    @property
    def mean_share(self) -> float:
        """Share of the squared norm that is the mean's, ``n mean² / norm²``, from 0 to 1."""
        return min(1.0, self.total**2 / self.count / self.squares) if self.squares else 0.0


@dataclass(frozen=True)
class Part:
    """Some tensors (a layer, or all) of B = 1 base, if there is one, and T models.

    Attributes:
        name: The layer's name; ``*`` for all tensors.
        num_elements: Elements of one model's tensors.
        weights: Of each of B + T models, the base first.
        task_vectors: Of each of T models; empty without a base.
        products: Inner products of task vectors, T x T.
        opposed: Elements that both of two models changed, in opposite directions, T x T.
        changed: Elements that both of two models changed, T x T; on the diagonal, that one did.
        num_conflicts: Elements that some model raised and another lowered.
        num_contested: Elements that at least two models changed.
    """

    name: str
    num_elements: int
    weights: tuple[Moments, ...]
    task_vectors: tuple[Moments, ...] = ()
    products: Matrix = ()
    opposed: Counts = ()
    changed: Counts = ()
    num_conflicts: int = 0
    num_contested: int = 0

    @property
    def conflict_share(self) -> float | None:
        """Of the elements that at least two models changed, the share they disagree on."""
        return self.num_conflicts / self.num_contested if self.num_contested else None

    def relative_norm(self, model: int) -> float | None:
        """Norm of a task vector over that of the base's weights; None if the latter is 0."""
        base = self.weights[0].norm
        return self.task_vectors[model].norm / base if base else None

    def cosine(self, one: int, other: int) -> float | None:
        """Cosine between two task vectors; None if one of them is 0."""
        lengths = self.task_vectors[one].norm * self.task_vectors[other].norm
        if not lengths:
            return None
        if one == other:
            return 1.0
        return max(-1.0, min(1.0, self.products[one][other] / lengths))

    def opposed_share(self, one: int, other: int) -> float | None:
        """Of the elements that both changed, the share that they changed in opposite directions."""
        both = self.changed[one][other]
        return self.opposed[one][other] / both if both else None


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        base: Name of the base, or None.
        models: Names of the T models.
        whole: Over all tensors.
        layers: The same by layer, in the models' order; a tensor outside the layers is one.
        left_out: Tensors that not all models have, or that hold no floating-point numbers.
    """

    base: str | None
    models: tuple[str, ...]
    whole: Part
    layers: tuple[Part, ...]
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For files; what is undefined (a cosine with a zero vector) is null."""
        return {
            "base": self.base,
            "models": list(self.models),
            "left_out": list(self.left_out),
            "whole": self._part_as_json(self.whole),
            "layers": [self._part_as_json(layer) for layer in self.layers],
        }

    def _part_as_json(self, part: Part) -> dict[str, Any]:
        everyone = [self.base, *self.models] if self.base is not None else list(self.models)
        found: dict[str, Any] = {"name": part.name, "num_elements": part.num_elements}
        found["weights"] = dict(zip(everyone, map(_as_json, part.weights), strict=True))
        if self.base is None:
            return found
        places = range(len(self.models))
        found["task_vectors"] = {
            name: _as_json(part.task_vectors[place])
            | {
                "relative_norm": part.relative_norm(place),
                "changed_share": part.changed[place][place] / max(part.num_elements, 1),
            }
            for place, name in enumerate(self.models)
        }
        found["cosine"] = [[part.cosine(i, j) for j in places] for i in places]
        found["opposed_share"] = [[part.opposed_share(i, j) for j in places] for i in places]
        found["conflict_share"] = part.conflict_share
        return found


def _as_json(moments: Moments) -> dict[str, float | None]:
    return {
        "norm": moments.norm,
        "mean": moments.mean,
        "std": moments.std,
        "mean_over_std": moments.mean_over_std,
        "t_ratio": moments.t_ratio,
        "mean_share": moments.mean_share,
    }
