"""What is wrong in a section that may be of several kinds is said in the words of one."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nan_merge.schema import StrictModel


class Span(StrictModel):
    low: float
    high: float

    @model_validator(mode="after")
    def _goes_upwards(self) -> "Span":
        if self.high < self.low:
            raise ValueError("goes down; exchange the two")
        return self


class Spans(StrictModel):
    of: tuple[float, ...] | Span


def test_what_a_section_of_a_union_refuses_is_said_in_its_words(problems):
    text = "of: {low: 2, high: 1}\n"
    assert problems(text, schema=Spans) == ["r.yaml:1:1: of: goes down; exchange the two"]
    assert problems("of: 1\n", schema=Spans) == [
        "r.yaml:1:1: of: found 1, expected a list or a section of keys and values"
    ]


class Cat(StrictModel):
    name: Literal["cat"] = "cat"
    lives: int = 9


class Dog(StrictModel):
    breed: str
    age: int = 0


class Zoo(StrictModel):
    pet: Cat | Dog | str | None = None
    pets: tuple[Annotated[Cat | Dog, Field(union_mode="left_to_right")], ...] = ()


def test_a_plain_union_reports_only_the_nearest_member(problems):
    assert problems("pet: {breed: pug, age: old}", schema=Zoo) == [
        "r.yaml:1:19: pet.age: found 'old', expected a whole number"
    ]


def test_a_value_that_fits_no_member_is_one_problem(problems):
    assert problems("pet: 3", schema=Zoo) == [
        "r.yaml:1:1: pet: found 3, expected a section of keys and values or text"
    ]


def test_a_union_in_a_list_names_the_entry(problems):
    assert problems("pets:\n- {lives: 8}\n- {lives: many}\n", schema=Zoo) == [
        "r.yaml:3:4: pets.1.lives: found 'many', expected a whole number"
    ]
