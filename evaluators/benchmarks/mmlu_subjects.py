"""MMLU's 57 subjects, the size of their test sets, and the groups that are averaged.

Names and sizes: github.com/hendrycks/test. Groups: OpenCompass,
opencompass/configs/summarizers/groups/mmlu.py at a5acc4b; anatomy, computer_security and others
lie elsewhere in the original paper's groups.
"""

from __future__ import annotations

_STEM = {
    "abstract_algebra": 100,
    "anatomy": 135,
    "astronomy": 152,
    "college_biology": 144,
    "college_chemistry": 100,
    "college_computer_science": 100,
    "college_mathematics": 100,
    "college_physics": 102,
    "computer_security": 100,
    "conceptual_physics": 235,
    "electrical_engineering": 145,
    "elementary_mathematics": 378,
    "high_school_biology": 310,
    "high_school_chemistry": 203,
    "high_school_computer_science": 100,
    "high_school_mathematics": 270,
    "high_school_physics": 151,
    "high_school_statistics": 216,
    "machine_learning": 112,
}
_SOCIAL_SCIENCE = {
    "econometrics": 114,
    "high_school_geography": 198,
    "high_school_government_and_politics": 193,
    "high_school_macroeconomics": 390,
    "high_school_microeconomics": 238,
    "high_school_psychology": 545,
    "human_sexuality": 131,
    "professional_psychology": 612,
    "public_relations": 110,
    "security_studies": 245,
    "sociology": 201,
    "us_foreign_policy": 100,
}
_HUMANITIES = {
    "formal_logic": 126,
    "high_school_european_history": 165,
    "high_school_us_history": 204,
    "high_school_world_history": 237,
    "international_law": 121,
    "jurisprudence": 108,
    "logical_fallacies": 163,
    "moral_disputes": 346,
    "moral_scenarios": 895,
    "philosophy": 311,
    "prehistory": 324,
    "professional_law": 1534,
    "world_religions": 171,
}
_OTHER = {
    "business_ethics": 100,
    "clinical_knowledge": 265,
    "college_medicine": 173,
    "global_facts": 100,
    "human_aging": 223,
    "management": 103,
    "marketing": 234,
    "medical_genetics": 100,
    "miscellaneous": 783,
    "nutrition": 306,
    "professional_accounting": 282,
    "professional_medicine": 272,
    "virology": 166,
}

NUM_TEST_SAMPLES: dict[str, int] = dict(
    sorted((_STEM | _SOCIAL_SCIENCE | _HUMANITIES | _OTHER).items())
)
SUBJECTS: tuple[str, ...] = tuple(NUM_TEST_SAMPLES)
GROUPS: dict[str, tuple[str, ...]] = {
    "mmlu-stem": tuple(_STEM),
    "mmlu-social-science": tuple(_SOCIAL_SCIENCE),
    "mmlu-humanities": tuple(_HUMANITIES),
    "mmlu-other": tuple(_OTHER),
}
