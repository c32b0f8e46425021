"""Precision strings: parsed once, printed back the same."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from suite.spec import Precision
from suite.spec.precision import BITS

widths = st.sampled_from(BITS)
groups = st.none() | st.integers(2, 4096)


@given(widths, widths, widths, groups)
def test_round_trip(weight: int, activation: int, kv: int, group: int | None) -> None:
    """Every precision that exists prints as a string that parses to itself."""
    assume(group is None or weight < 16)
    precision = Precision(weight_bits=weight, activation_bits=activation, kv_bits=kv, group_size=group)
    assert Precision.parse(str(precision)) == precision


@given(st.text(alphabet="WAKV0123456789-gMXFP ", max_size=18))
def test_canonical(text: str) -> None:
    """A string either is refused, or is exactly what its precision prints: one spelling each."""
    try:
        precision = Precision.parse(text)
    except ValueError:
        return
    assert str(precision) == text


@given(st.text(max_size=30))
def test_refusal_says_how(text: str) -> None:
    """Whatever is not a precision is refused with a hint, never with another exception."""
    assume(not _parses(text))
    with pytest.raises(ValueError, match=r"did you mean|examples|write"):
        Precision.parse(text)


@given(st.integers(-2, 40), st.integers(-2, 40), st.integers(-2, 40), st.none() | st.integers(-3, 5000))
def test_hint_is_valid(weight: int, activation: int, kv: int, group: int | None) -> None:
    """What a refusal proposes can be taken as it is."""
    text = f"W{weight}A{activation}KV{kv}" + ("" if group is None else f"-g{group}")
    try:
        Precision.parse(text)
    except ValueError as error:
        if 'did you mean "' in str(error):
            Precision.parse(str(error).split('did you mean "')[1].split('"')[0])


def test_fields() -> None:
    """The string's numbers land in their fields."""
    precision = Precision.parse("W3A8KV4-g64")
    assert (precision.weight_bits, precision.activation_bits, precision.kv_bits) == (3, 8, 4)
    assert (precision.group_size, precision.format) == (64, "int")


def test_mxfp4() -> None:
    """MXFP4 stands for four bits everywhere in blocks of 32, and for no other combination."""
    precision = Precision.parse("MXFP4")
    assert (precision.weight_bits, precision.activation_bits, precision.kv_bits, precision.group_size) == (4, 4, 4, 32)
    assert str(precision) == "MXFP4"
    with pytest.raises(ValidationError, match="blocks of 32"):
        Precision(weight_bits=4, format="mxfp4")


def test_frozen_and_hashable() -> None:
    """A precision is a value: equal ones are one key, and none can be changed."""
    assert len({Precision.parse("W8A8KV8"), Precision.parse("W8A8KV8")}) == 1
    with pytest.raises(ValidationError, match="frozen"):
        Precision().weight_bits = 4


@pytest.mark.parametrize("bits", [0, 1, 9, 15, 32])
def test_fields_obey_the_same_rules(bits: int) -> None:
    """Built from numbers, a precision is checked as a parsed one is."""
    with pytest.raises(ValidationError, match="2 to 8 bits"):
        Precision(weight_bits=bits)


def _parses(text: str) -> bool:
    try:
        Precision.parse(text)
    except ValueError:
        return False
    return True
