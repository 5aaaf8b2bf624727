"""The strictness that every configuration class shares."""

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Immutable; refuses unknown keys and non-finite numbers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )
