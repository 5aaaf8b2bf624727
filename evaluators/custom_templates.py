"""Fill templates of jinja2 with the columns of a row, in its sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nan_merge.config_messages import did_you_mean
from nan_merge.errors import DataError, MissingExtraError


def template_problem(text: str) -> str | None:
    """Why a text is no template; None if it is one."""
    from jinja2 import TemplateError

    try:
        _compile(text)
    except TemplateError as error:
        return str(error)
    return None


def fill(text: str, row: Mapping[str, Any], place: str, key: str) -> str:
    """Fill a template.

    Args:
        text: The template.
        row: Column -> value.
        place: "FILE:LINE" of the row, for messages.
        key: Of the configuration, from which the template is, for messages.

    Raises:
        DataError: If it names a column that the row lacks, or cannot be filled with its values.
    """
    from jinja2 import TemplateError, UndefinedError

    try:
        return _compile(text).render(row)
    except UndefinedError as error:
        name = str(error).split("'")[1] if str(error).count("'") >= 2 else ""
        columns = ", ".join(row)
        raise DataError(
            f"{place}: {key}: {error}; the columns are {columns}{did_you_mean(name, row)}"
        ) from error
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"{place}: {key}: cannot be filled: {error}") from error


@lru_cache
def _compile(text: str) -> Any:
    try:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError(
            "templates need jinja2: pip install 'nan-merge[language]'"
        ) from error
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(text)
