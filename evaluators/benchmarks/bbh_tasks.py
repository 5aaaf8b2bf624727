"""BIG-Bench Hard's 27 tasks, their sizes, and which of them have labelled options.

github.com/suzgunmirac/BIG-Bench-Hard at 9ee07bd. The two kinds are scored in two ways:
opencompass/configs/datasets/bbh/bbh_gen_5b92b0.py at a5acc4b.
"""

from __future__ import annotations

MULTIPLE_CHOICE: dict[str, int] = {
    "date_understanding": 250,
    "disambiguation_qa": 250,
    "geometric_shapes": 250,
    "hyperbaton": 250,
    "logical_deduction_five_objects": 250,
    "logical_deduction_seven_objects": 250,
    "logical_deduction_three_objects": 250,
    "movie_recommendation": 250,
    "penguins_in_a_table": 146,
    "reasoning_about_colored_objects": 250,
    "ruin_names": 250,
    "salient_translation_error_detection": 250,
    "snarks": 178,
    "temporal_sequences": 250,
    "tracking_shuffled_objects_five_objects": 250,
    "tracking_shuffled_objects_seven_objects": 250,
    "tracking_shuffled_objects_three_objects": 250,
}
FREE_FORM: dict[str, int] = {
    "boolean_expressions": 250,
    "causal_judgement": 187,
    "dyck_languages": 250,
    "formal_fallacies": 250,
    "multistep_arithmetic_two": 250,
    "navigate": 250,
    "object_counting": 250,
    "sports_understanding": 250,
    "web_of_lies": 250,
    "word_sorting": 250,
}
NUM_SAMPLES: dict[str, int] = dict(sorted((MULTIPLE_CHOICE | FREE_FORM).items()))
TASKS: tuple[str, ...] = tuple(NUM_SAMPLES)
