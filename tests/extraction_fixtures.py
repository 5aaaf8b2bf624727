"""What was written, and what every extraction makes of it, known mistakes of upstream included.

The columns of upstream were filled by running it: opencompass 0.5.4, and the toolkit of
Qwen2.5-Math at a45202b. `tests/peers` runs it again where it is installed. None is an abstention.
"""

from typing import NamedTuple


class Letter(NamedTuple):
    completion: str
    first_option: str | None
    first_capital: str | None
    answer_pattern: str | None
    strict: str | None


LETTERS = [
    Letter("B", "B", "B", None, "B"),
    Letter("B.", "B", "B", None, "B"),
    Letter("(B)", "B", "B", None, "B"),
    Letter("B. Paris", "B", "B", None, "B"),
    Letter("The answer is B", "B", "T", None, "B"),
    Letter("The answer is (B).", "B", "T", None, "B"),
    Letter("the answer is **C**", "C", "C", None, "C"),
    Letter("The correct answer is option: (D)", "D", "T", None, "D"),
    Letter("ANSWER: B", "B", "A", "B", "B"),
    Letter("ANSWER: b", "A", "A", "b", "B"),  # both of upstream's are wrong
    Letter("Answer: $B$", "A", "A", None, "B"),
    Letter("**Answer**: C", "C", "A", None, "C"),
    Letter("\\boxed{C}", "C", "C", None, "C"),
    Letter("The correct answer is \\boxed{C}", "C", "T", None, "C"),
    Letter("答案是B", "B", "B", None, "B"),
    Letter("答案：C", "C", "C", None, "C"),
    Letter("答案为 D。", "D", "D", None, "D"),
    Letter("故选B", "B", "B", None, "B"),
    Letter("选B", "B", "B", None, "B"),
    Letter("选项 B 正确", "B", "B", None, None),
    Letter("A green leaf is shown", "A", "A", None, None),
    Letter("The answer is a green leaf", None, "T", None, None),
    Letter("I think it is B because A is wrong", "B", "I", None, None),
    Letter("The answer is not A. The answer is B.", "B", "T", None, "B"),
    Letter("The answer is A. No, the answer is B.", "B", "T", None, "B"),
    Letter("1. B is right, not A", "A", "B", None, None),
    Letter("10 apples, so C", "C", "C", None, None),
    Letter("C\n\nQuestion: next\nAnswer: D", "D", "C", "D", "C"),
    Letter("Option D", "D", "O", None, "D"),
    Letter("D: all of the above", "D", "D", None, "D"),
    Letter("None of them", None, "N", None, None),
    Letter("It depends.", None, "I", None, None),
    Letter("", None, None, None, None),
]


class BbhAnswer(NamedTuple):
    completion: str
    gold: str
    compat: bool
    strict: bool


BBH_CHOICES = [
    BbhAnswer("So the answer is (A).", "(A)", True, True),
    BbhAnswer("The answer is B", "(B)", True, True),
    BbhAnswer("answer is b", "(B)", False, True),
    BbhAnswer("the answer is not (A). So the answer is (C).", "(C)", False, True),
    BbhAnswer("So the answer is (C).\n\nQ: next\nA: the answer is (A).", "(C)", True, True),
    BbhAnswer("\\boxed{B}", "(B)", True, True),
    BbhAnswer("\\boxed{(B)}", "(B)", True, True),
    BbhAnswer("\\boxed{\\text{(B)}}", "(B)", True, True),
    BbhAnswer("I think (C))", "(C)", True, False),
    BbhAnswer("(A) or (B)", "(A)", True, False),
    BbhAnswer("So the answer is Monsters, Inc.", "Monsters, Inc", True, True),
    BbhAnswer("So the answer is (A).", "Monsters, Inc", False, False),
    BbhAnswer("So the answer is Maybe.", "Monsters, Inc", True, False),
    BbhAnswer("nothing here", "(A)", False, False),
    BbhAnswer("", "(A)", False, False),
]
BBH_TEXTS = [
    BbhAnswer("So the answer is 24.", "24", True, True),
    BbhAnswer("24\nQ: foo\nA: So the answer is 7.", "24", False, True),
    BbhAnswer("So the answer is 24.\n\nQ: foo\nA: So the answer is 7.", "24", False, True),
    BbhAnswer("\\boxed{24}", "24", False, True),
    BbhAnswer("The answer is \\boxed{24}.", "24", False, True),
    BbhAnswer("the answer is 24 steps", "24", False, True),
    BbhAnswer("the answer is 1,000.", "1000", False, True),
    BbhAnswer("So the answer is No.", "No", True, True),
    BbhAnswer("so the answer is **Yes**.", "Yes", True, True),
    BbhAnswer("answer is yes, because", "yes", True, True),
    BbhAnswer("The answer is: True", "True", True, True),
    BbhAnswer("No, it is not", "No", True, True),
    BbhAnswer("So the answer is not valid", "valid", False, False),
    BbhAnswer("So the answer is invalid.", "valid", False, False),
    BbhAnswer("The answer is apple, banana, cherry", "apple banana cherry", True, True),
    BbhAnswer("The answer is apple cherry banana", "apple banana cherry", False, False),
    BbhAnswer("The answer is } ] >.", "} ] >", True, True),
    BbhAnswer("The answer is }]>", "} ] >", False, True),
    BbhAnswer("", "24", False, False),
]


class Number(NamedTuple):
    completion: str
    gold: str
    opencompass: str | None
    opencompass_right: bool
    qwen: str | None
    qwen_right: bool
    strict: str | None
    strict_right: bool


NUMBERS = [
    Number("The answer is 18", "18", "18", True, "18", True, "18", True),
    Number("The answer is 18.", "18", "18", True, "18", True, "18", True),
    Number("\\boxed{18}.", "18", "18", True, "18", True, "18", True),
    Number("The answer is $18", "18", "18", True, "18", True, "18", True),
    Number("#### 18", "18", "18", True, "18", True, "18", True),
    Number("**18**", "18", "18", True, "18", True, "18", True),
    Number("The answer is **18**.", "18", "18", True, "**18**", False, "18", True),
    Number("The answer is 18 dollars.", "18", "18", True, "18dollars", False, "18", True),
    Number("\\boxed{18\\text{ dollars}}", "18", "18", True, "18", True, "18", True),
    Number("\\boxed{18 eggs}", "18", "18", True, "18eggs", False, "18", True),
    Number("The answer is 18 feet", "18", "18", True, "18", True, "18", True),
    Number("The answer is 18, as shown", "18", "18", True, "18,shown", True, "18", True),
    Number("The answer is 18 (9*2)", "18", "2", False, "18(9*2)", False, "18", True),
    Number("The answer is 1,000", "1000", "000", False, "1,000", True, "1,000", True),
    Number("The answer is 1000", "1,000", "1000", True, "1000", True, "1000", True),
    Number("\\boxed{1{,}000}", "1000", "000", False, "1{,}000", False, "1,000", True),
    Number("\\boxed{eighteen}", "18", None, False, "18", True, None, False),
    Number("The answer is one of 18", "18", "18", True, "1", False, "18", True),
    Number(
        "\\boxed{\\frac{36}{2}}", "18", "2", False, "\\frac{36}{2}", True, "\\frac{36}{2}", True
    ),
    Number("so 20-2", "18", "-2", False, "-2", False, "2", False),
    Number("\\boxed{20-2}", "18", "-2", False, "20-2", True, "20", False),
    Number("3 x 6 = 18 eggs in 7 days", "18", "7", False, "7", False, "7", False),
    Number("\\boxed{18} is boxed", "18", "18", True, None, False, "18", True),
    Number("18\n\nQuestion: x\nThe answer is 7", "18", "18", True, "7", False, "18", True),
    Number("答案是18\n\n共 7 天", "18", "7", False, "18", True, "18", True),
    Number("the final answer is $18$. I hope so", "18", "18", True, "18", True, "18", True),
    Number("0.18", "18", "0.18", False, "0.18", True, "0.18", False),
    Number("1800", "18", "1800", False, "1800", True, "1800", False),
    Number("18.001", "18", "18.001", False, "18.001", True, "18.001", False),
    Number("10001", "10000", "10001", False, "10001", True, "10001", False),
    Number("$18.50", "18", "18.50", False, "18.50", False, "18.50", False),
    Number("18.00", "18", "18.00", True, "18", True, "18.00", True),
    Number("18%", "18", "18", True, "18", True, "18", True),
    Number("-5", "-5", "-5", True, "-5", True, "-5", True),
    Number("none", "18", None, False, None, False, None, False),
    Number("", "18", None, False, None, False, None, False),
]
