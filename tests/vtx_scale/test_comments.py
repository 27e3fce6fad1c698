"""The meaning of a key is the comment beside its field."""

from dataclasses import dataclass

from vtx_scale.specs.comments import comments, meanings
from vtx_scale.specs.run import Evaluation, Run
from vtx_scale.specs.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Base(Spec):
    """Its fields have comments in every place."""

    first: int = 1  # behind it
    # above it, in
    # two lines
    second: str = "# no comment"

    # not of the next, for a line lies between

    third: tuple[int, ...] = (
        1,  # within it
        2,
    )


@dataclass(frozen=True, kw_only=True)
class Child(Base):
    """One of its own, and another meaning for one of its base."""

    second: str = ""  # another
    # above
    fourth: int = 0  # and behind


def test_comments_of_a_class_and_its_bases():
    own = {name: comments(Child)[name] for name in ("first", "second", "third", "fourth")}
    assert own == {
        "first": "behind it",
        "second": "another",
        "third": "within it",
        "fourth": "above and behind",
    }
    assert comments(Base)["second"] == "above it, in two lines"


def test_a_class_without_source_has_none():
    assert comments(dataclass(type("Made", (), {"__annotations__": {"x": int}}))) == {}


def test_keys_of_specs_within_specs():
    run = Run(objective=Child(), evaluate=(Evaluation(),))
    found = meanings(run)
    assert found["objective.fourth"] == "above and behind"
    assert "evaluate.0.every" in found and found["optim.lr"]
