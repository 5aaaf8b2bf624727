r"""Score a word problem as the evaluation toolkit of Qwen2.5-Math does, known mistakes included.

QwenLM/Qwen2.5-Math at a45202b: extract_answer, strip_string and run_execute of
evaluation/parser.py, math_equal of evaluation/grader.py. This is its numeric path: where the gold
answer is a number. The toolkit hands other terms to sympy; here only fractions, whole roots, sums,
differences, products and quotients of numbers are worked out.
"""

from __future__ import annotations

import ast
import math
import re
from fractions import Fraction
from functools import lru_cache

from evaluators.qwen_math_words import UNITS, number_from_words

# Replacements in their order: what stands before the units are removed, and what after.
_BEFORE_UNITS = (
    (r"\\!", ""),
    (r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}"),
    (r"\\end\{array\}", r"\\end{pmatrix}"),
    ("bmatrix", "pmatrix"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    (r"\\neq", r"\\ne"),
    (r"\\leq", r"\\le"),
    (r"\\geq", r"\\ge"),
    (r"\\left", ""),
    (r"\\right", ""),
    (r"\\\{", "{"),
    (r"\\\}", "}"),
)
_BEFORE_WORDS = (
    (r"\^\{\\circ\}", ""),
    (r"\^\\circ", ""),
    (r"\\\$", ""),
    (r"\$", ""),
    (r"\\\(", ""),
    (r"\\\)", ""),
)
_AFTER_WORDS = (
    (r"\\text\{(.*?)\}", r"\1"),
    *((each, "") for each in ("x=", "y=", "z=", r"x\\in", r"y\\in", r"z\\in")),
    *((each, "") for each in (r"x\\to", r"y\\to", r"z\\to")),
    (r"\\emptyset", "{}"),
    (r"\(-\\infty,\\infty\)", r"\\mathbb{R}"),
    (r"\\%", ""),
    ("%", ""),
    (r" \.", " 0."),
    (r"\{\.", "{0."),
    ("infinity", r"\\infty"),
)
_AT_LAST = (
    ("and", ""),
    (r"\\mathbf", ""),
    (r"\\mbox{.*?}", ""),
)


def qwen_math_answer(text: str) -> str | None:
    """The toolkit's extraction; None if it finds nothing.

    In this order: "final answer is $...$. I hope", the braces behind the last "boxed", what
    follows the last "he answer is", the last "final answer is" or the first "答案是", the last
    number. "The answer is 18 dollars." gives 18dollars; a word "boxed" at the end gives nothing.
    """
    text = text.strip()
    if not text or text == "error":
        return None
    found = re.sub(r"\n\s*", "", _span(text.replace("ки", "")))
    found = found.removeprefix(":").removesuffix(".").removesuffix("/")
    return strip_answer(strip_answer(found)) or None


def qwen_math_equal(found: str, gold: str) -> bool:
    """The toolkit's equality of an extracted answer and a gold one, as the data has it.

    Numbers are equal within a relative 1e-4, and to 100 times and to 1/100 of the gold one:
    1800, 0.18 and 18.001 all equal 18, and 10001 equals 10000.
    """
    gold = strip_answer(strip_answer(gold))
    if found.lower() == gold.lower():
        return True
    reference, number = _to_float(gold), _to_float(found)
    if reference is None:
        return False
    if number is not None:
        return any(
            _is_close(each, number) for each in (reference / 100, reference, reference * 100)
        )
    if re.sub(r"[{}()]", "", _unbracketed(found)).lower() == gold.lower():
        return True
    left, equals, right = found.partition("=")
    if equals and "=" not in right and len(left.strip()) <= 2:
        return qwen_math_equal(right, gold)
    term = _without_latex(found)
    value = _work_out(term) or _work_out(_first_term(term))
    return value is not None and _is_close(float(value), reference)


def strip_answer(text: str) -> str:
    """The toolkit's `strip_string`: without units, signs of LaTeX, percent and blanks."""
    text = _replace(text.strip().replace("\n", "").rstrip("."), _BEFORE_UNITS)
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    text = _replace(_without_units(text), _BEFORE_WORDS)
    text = _replace(number_from_words(text), _AFTER_WORDS)
    if r"\infty" not in text:
        text = text.replace("inf", r"\infty")
    text = _replace(text, _AT_LAST)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0*$", r"\1", text)
    text = f"0{text}" if text.startswith(".") else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    return _slash_to_frac(_brace_fracs(text))


def _span(text: str) -> str:
    """The part of a completion that the toolkit reads as its answer."""
    if "final answer is $" in text and "$. I hope" in text:
        return text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    if "boxed" in text:
        return _boxed(text.split("boxed")[-1])
    for statement in ("he answer is", "final answer is"):
        if statement in text:
            return text.split(statement)[-1].strip()
    if "答案是" in text:
        return text.split("答案是")[1].strip().split("\n\n")[0].strip()
    numbers = re.findall(r"-?\d*\.?\d+", text.replace(",", ""))
    return numbers[-1] if numbers else ""


def _boxed(text: str) -> str:
    if not text.startswith("{"):
        return text.split("$")[0].strip()
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[1:place]
    return text[1:]


def _replace(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _without_units(text: str) -> str:
    for _ in range(2):
        for pattern in _unit_patterns():
            text = pattern.sub(r"\1\2", text) or text
    return text


@lru_cache
def _unit_patterns() -> list[re.Pattern[str]]:
    return [re.compile(rf"(^|\W){unit}($|\W)") for unit in UNITS]


def _brace_fracs(text: str) -> str:
    r"""\frac12 to \frac{1}{2}; as it was if something is missing."""
    first, *rest = text.split(r"\frac")
    for part in rest:
        if part.startswith("{"):
            first += rf"\frac{part}"
        elif len(part) < 2:
            return text
        else:
            denominator = part[1] if part[1] == "{" else f"{{{part[1]}}}"
            first += rf"\frac{{{part[0]}}}{denominator}{part[2:]}"
    return first


def _slash_to_frac(text: str) -> str:
    sides = text.split("/")
    whole = r"0|-?[1-9]\d*"
    if len(sides) != 2 or not all("sqrt" in each or re.fullmatch(whole, each) for each in sides):
        return text
    return rf"\frac{{{sides[0]}}}{{{sides[1]}}}"


def _to_float(text: str) -> float | None:
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        return None


def _is_close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-4)


def _unbracketed(text: str) -> str:
    pairs = (("[", "]"), ("(", ")"))
    return text.strip("[]()") if any(text[:1] == a and text[-1:] == b for a, b in pairs) else text


def _without_latex(text: str) -> str:
    text = re.sub(r"\\sqrt{(\d{1,30})}", lambda root: _root(int(root[1])) or root[0], text)
    text = re.sub(r"\\frac{(-?[\d.]+)}{(-?[\d.]+)}", r"((\1)/(\2))", text)
    return re.sub(r"\\(times|cdot|div)", lambda sign: "/" if sign[1] == "div" else "*", text)


def _first_term(text: str) -> str:
    """What sympy's reader of LaTeX reads: it stops at some signs without a word.

    So "18,shown" is 18.
    """
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        opens = letter == "(" and ")" not in text[place:]
        doubled = text[place : place + 2] in ("**", "//", "::")
        if depth < 0 or opens or doubled or letter in "#&',_|[]{}":
            return text[:place]
    return text


def _root(square: int) -> str | None:
    root = math.isqrt(square)
    return str(root) if root * root == square else None


def _work_out(text: str) -> Fraction | None:
    """The value of a term of numbers; None if it is anything else."""
    if len(text) > 200 or not re.fullmatch(r"[\d.+\-*/()]+", text) or "**" in text or "//" in text:
        return None
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, OverflowError):
        return None


def _evaluate(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value):
            return Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluate(left) + _evaluate(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _evaluate(left) - _evaluate(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluate(left) * _evaluate(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _evaluate(left) / _evaluate(right)
        case _:
            raise ValueError("not a term of numbers")
