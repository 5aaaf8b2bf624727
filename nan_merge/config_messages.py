"""What pydantic found wrong, as one readable line for every real problem."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from nan_merge.schema_paths import Spot, field_names, locate
from nan_merge.yaml_text import Document, FieldPath, field_name, shorten

# Type of a pydantic error -> what was expected, filled in from the error's context.
_EXPECTED = {
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "path_type": "a path",
    "none_required": "nothing",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "union_tag_invalid": "{expected_tags}",
}

# What users of other tools write, a choice that shows what is asked for, and what it is here.
_OTHER_WORDS = {
    "linear": ("average", "'linear' is called 'average' here"),
    "mean": ("average", "it is called 'average' here"),
    "nan": (
        "task_arithmetic",
        "NAN makes coefficients, for any method: write `coefficients: nan` beside it",
    ),
}


class _Problem:
    """One pydantic error and the place in the schema that it is about."""

    def __init__(self, schema: type[BaseModel], error: Any) -> None:
        self.kind: str = error["type"]
        self.message: str = error["msg"]
        self.found: Any = error["input"]
        self.context: dict[str, Any] = error.get("ctx", {})
        self.spot: Spot = locate(schema, error["loc"])
        self.path: FieldPath = self.spot.path


def problem_lines(schema: type[BaseModel], error: ValidationError, document: Document) -> list[str]:
    """One line per problem, in no order.

    Each is ``place: field: what was found, what was expected; did you mean 'something near'?``
    """
    problems = [
        _Problem(schema, item) for item in error.errors(include_url=False) if not _is_echo(item)
    ]
    return [_line(group, document) for group in _one_per_union(problems, 0)]


def _is_echo(error: Any) -> bool:
    """Whether a list is called too short only because none of its entries is right."""
    found = error["input"]
    is_list = isinstance(found, list | tuple)
    return error["type"] == "too_short" and is_list and len(found) >= error["ctx"]["min_length"]


def did_you_mean(word: str, known: Iterable[str], end: str = "") -> str:
    """``; did you mean 'density'?`` if a known name is near, else ``end``.

    Where a sentence ends here, its end is a full stop: never a question mark and a full stop.
    """
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:  # `TIES` for `ties`
        lower = {name.lower(): name for name in names}
        found = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
        near = [lower[name] for name in found]
    return f"; did you mean {near[0]!r}?" if near else end


def _choice_hint(word: str, choices: Sequence[str]) -> str:
    """What a value that is none of the choices may have meant."""
    shown, hint = _OTHER_WORDS.get(word.lower(), ("", ""))
    return f"; {hint}" if shown in choices else did_you_mean(word, choices)


def describe(value: Any) -> str:
    """A value that was found, in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return shorten(value)
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_per_union(problems: Sequence[_Problem], depth: int) -> list[list[_Problem]]:
    """Groups of problems that make one line each.

    pydantic tries every member of a union and lists what each dislikes. If the value has the
    form of some member (its errors lie deeper than the union), only the nearest one counts;
    if it fits none, all that would have been accepted goes on one line.
    """
    groups: list[list[_Problem]] = []
    unions: dict[FieldPath, dict[str, list[_Problem]]] = {}
    for problem in problems:
        if len(problem.spot.unions) <= depth:
            groups.append([problem])
            continue
        path, label = problem.spot.unions[depth]
        unions.setdefault(path, {}).setdefault(label, []).append(problem)
    for path, members in unions.items():
        deeper = [m for m in members.values() if any(len(p.spot.path) > len(path) for p in m)]
        if deeper:
            groups += _one_per_union(min(deeper, key=len), depth + 1)
        else:
            groups.append([problem for member in members.values() for problem in member])
    return groups


def _line(group: Sequence[_Problem], document: Document) -> str:
    first, path = group[0], group[0].path
    if first.kind == "union_tag_invalid":
        key = str(first.context["discriminator"]).strip("'")
        # Only in the long form; a short form has no key to point at.
        path = (*path, key) if (*path, key) in document.places else path
    name = field_name(path)
    begin = f"{document.place(path)}: {f'{name}: ' if name else ''}"
    return "\n".join(begin + sentence for sentence in _sentence(group).split("\n"))


def _sentence(group: Sequence[_Problem]) -> str:
    first = group[0]
    if first.kind == "extra_forbidden":
        return _unknown_key(first)
    if first.kind == "missing":
        return "is missing, expected a value"
    # Whatever else a union would take: this member's form fits, and what it says is wrong.
    if refused := [problem for problem in group if problem.kind == "value_error"]:
        return refused[0].message.removeprefix("Value error, ")
    if first.kind == "union_tag_not_found":
        key = str(first.context["discriminator"]).strip("'")
        return f"found {describe(first.found)} without `{key}`, expected `{key}` to tell which"
    found = describe(_tag(first) if first.kind == "union_tag_invalid" else first.found)
    expected = list(dict.fromkeys(_expected(problem) for problem in group))
    hint = ""
    if isinstance(first.found, str | dict):
        choices = [choice for text in expected for choice in re.findall(r"'([^']*)'", text)]
        hint = _choice_hint(str(_tag(first)), choices)
    if first.kind == "string_type" and isinstance(first.found, int | float):
        hint = "; put it in quotes"
    return f"found {found}, expected {_join(expected)}{hint}"


def _tag(problem: _Problem) -> Any:
    return problem.context.get("tag", problem.found)


def _unknown_key(problem: _Problem) -> str:
    section, key = problem.spot.section, str(problem.path[-1])
    names = field_names(section) if section is not None else []
    return f"unknown key, expected one of {', '.join(names)}{did_you_mean(key, names)}"


def _expected(problem: _Problem) -> str:
    template = _EXPECTED.get(problem.kind)
    if template is None:
        return re.sub(r"^(Input|Value) should be (a valid )?", "", problem.message)
    context = dict(problem.context)
    if "expected_tags" in context:
        context["expected_tags"] = _join(str(context["expected_tags"]).split(", "))
    return template.format(**context)


def _join(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
