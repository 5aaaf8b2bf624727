"""Run files for tests of sending runs to a cluster."""

from pipelines.config import RunConfig

RUN = {
    "name": "tiny",
    "experts": {
        "tasks": ["digits", "texture"],
        "text": {"steps": 1},
        "pretrain": {"steps": 1},
        "finetune": {"steps": 1},
    },
    "merges": [{"name": "Average", "method": "average"}],
    "evaluate": {"benchmarks": ["digits"]},
    "track": {"mlflow": False},
}


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(RUN | changes)


def own_models(**changes: object) -> RunConfig:
    content = {**RUN, "experts": None, "base": "org/base", "models": ["org/a"], "clip": "/data/c"}
    return RunConfig.model_validate(content | changes)
