"""We-Math's accuracy by domain of knowledge (evaluation/accuracy.py at a57a0e8).

A concept of knowledge belongs to a domain, as the authors' ``knowledge_structure_nodes.json`` says;
without that file beside the data there are no domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluators.benchmarks.files import read_json
from evaluators.profiles import Judged
from evaluators.scores import Score, score_weighted
from nan_merge.errors import DataError

NODES = "knowledge_structure_nodes.json"
_DOMAIN, _CONCEPT = "domain: ", "concept: "


def read_domains(folder: Path) -> dict[str, str]:
    """Concept -> domain; empty if the file is not there.

    Raises:
        DataError: If the file is damaged.
    """
    for path in (folder / NODES, folder / "data" / NODES):
        if path.is_file():
            nodes: Any = read_json(path)
            try:
                names = [str(node["full node"]).split("_") for node in nodes]
                return {each[-1]: each[1] for each in names}
            except (TypeError, KeyError, IndexError) as error:
                raise DataError(
                    f"{path}: expected a list of objects with 'full node', such as "
                    "'Measurement_Angles and Length_Understanding Angles'. Fetch it again, or "
                    "remove it; there are no scores by domain then."
                ) from error
    return {}


def domain_tags(concept: str, domains: dict[str, str]) -> tuple[str, ...]:
    """Tags of a question of one step; none if its concept is in no domain."""
    if concept not in domains:
        return ()
    return f"{_DOMAIN}{domains[concept]}", f"{_CONCEPT}{concept}"


def domain_scores(outcomes: Sequence[Judged]) -> dict[str, Score]:
    """Accuracy by domain: the mean over its concepts of that on their questions of one step."""
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for each in outcomes:
        domain, concept = (_tag(each, start) for start in (_DOMAIN, _CONCEPT))
        if domain and concept:
            answers = found.setdefault(domain, {}).setdefault(concept, [])
            answers.append((each.sample.cluster_id, float(each.is_correct)))
    return {
        name: score_weighted(
            name, "accuracy", [(1 / len(concepts), each) for each in concepts.values()]
        )
        for name, concepts in found.items()
    }


def _tag(outcome: Judged, start: str) -> str | None:
    return next((tag for tag in outcome.sample.tags if tag.startswith(start)), None)
