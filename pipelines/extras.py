"""Which extra of the installation brings which library; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from nan_merge.errors import MissingExtraError

# Module that a bare installation lacks -> extra that brings it.
EXTRAS = {
    "datasets": "language",
    "fsspec": "objects",
    "jinja2": "track",
    "matplotlib": "track",
    "mlflow": "track",
    "mlxtend": "quickstart",
    "open_clip": "eval",
    "optuna": "sweep",
    "PIL": "eval",
    "ray": "cluster",
    "scipy": "compare",
    "skimage": "quickstart",
    "sklearn": "quickstart",
    "statsmodels": "compare",
    "torchvision": "eval",
    "transformers": "language",
    "vllm": "vllm",
}


def missing_extra(module: str) -> MissingExtraError:
    """The error that tells how to install a module that is not there."""
    extra = EXTRAS.get(module)
    if extra is None:
        mend = "the installation is incomplete, install nan-merge again"
    else:
        mend = f"pip install 'nan-merge[{extra}]'"
    return MissingExtraError(f"{module} is not installed: {mend}")


def require(modules: Iterable[str]) -> None:
    """Refuse to start if a library is missing that is needed only later.

    Raises:
        MissingExtraError: Names every missing library and the extras that bring them.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if len(missing) == 1:
        raise missing_extra(missing[0])
    if missing:
        extras = ",".join(sorted({EXTRAS[module] for module in missing}))
        raise MissingExtraError(
            f"{', '.join(missing)} are not installed: pip install 'nan-merge[{extras}]'"
        )
