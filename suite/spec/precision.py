"""Precision: how many bits weights, activations and the KV cache keep, as one string.

    W<b>A<b>KV<b>[-g<n>]    integers of b = 2..8 bits, or bf16 (b = 16); n neighbouring inputs share a scale
    MXFP4                   4-bit floats (E2M1), blocks of 32 with a power-of-two scale: weights, activations and KV

Without -g a scale is shared by a whole output channel. The string is canonical: `str(Precision.parse(text)) == text`.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from suite.spec.errors import RuleError

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
MXFP4_BLOCK = 32
PACKABLE, PACKED_GROUP = (3, 4), 128  # bits of weights and caches that can be served as codes, and a weight's groups
FORM = "a precision is written W<bits>A<bits>KV<bits>[-g<group size>], or MXFP4"

_PATTERN = re.compile(r"W([1-9]\d*)A([1-9]\d*)KV([1-9]\d*)(?:-g(\d+))?")
_LOOSE = re.compile(r"W?\s*(\d+)\s*(?:A\s*(\d+))?\s*(?:KV?\s*(\d+))?\s*(?:[-_ ]?G\s*(\d+))?", re.IGNORECASE)


class Precision(BaseModel):
    """Bits of weights, activations and KV cache. `group_size` None: one scale per output channel (or W16)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_bits: int = 16
    activation_bits: int = 16
    kv_bits: int = 16
    group_size: int | None = None
    format: Literal["int", "mxfp4"] = "int"

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """The precision a string stands for. Raises: RuleError (a ValueError): the rule and the nearest valid form."""
        if text == "MXFP4":
            return cls(weight_bits=4, activation_bits=4, kv_bits=4, group_size=MXFP4_BLOCK, format="mxfp4")
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise RuleError(FORM, _nearest_form(text))
        weight, activation, kv = (int(bits) for bits in match.groups()[:3])
        group = match.group(4)
        rejected = _broken_rule(weight, activation, kv, None if group is None else int(group), text)
        if rejected is not None:
            raise rejected
        return cls(
            weight_bits=weight, activation_bits=activation, kv_bits=kv, group_size=None if group is None else int(group)
        )

    @property
    def quantized(self) -> bool:
        """Whether anything is kept in less than bf16."""
        return min(self.weight_bits, self.activation_bits, self.kv_bits) < 16

    @property
    def packs_weights(self) -> bool:
        """Whether weights can be served as codes."""
        return self.format == "int" and self.weight_bits in PACKABLE

    @property
    def packs_cache(self) -> bool:
        """Whether keys and values can be kept as codes."""
        return self.format == "int" and self.kv_bits in PACKABLE

    def __str__(self) -> str:
        if self.format == "mxfp4":
            return "MXFP4"
        group = "" if self.group_size is None else f"-g{self.group_size}"
        return f"W{self.weight_bits}A{self.activation_bits}KV{self.kv_bits}{group}"

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        # Called without parse() on the way in, so that a string stands wherever a precision is declared.
        if not isinstance(value, str):
            return value
        parsed = cls.parse(value)
        return {name: getattr(parsed, name) for name in cls.model_fields}

    @model_validator(mode="after")
    def _check(self) -> "Precision":
        if self.format == "mxfp4":
            if (self.weight_bits, self.activation_bits, self.kv_bits, self.group_size) != (4, 4, 4, MXFP4_BLOCK):
                raise RuleError("MXFP4 is 4 bits for weights, activations and KV in blocks of 32", 'write "MXFP4"')
            return self
        rejected = _broken_rule(self.weight_bits, self.activation_bits, self.kv_bits, self.group_size, str(self))
        if rejected is not None:
            raise rejected
        return self


def _broken_rule(weight: int, activation: int, kv: int, group: int | None, text: str) -> RuleError | None:
    for letter, bits in (("W", weight), ("A", activation), ("KV", kv)):
        if bits not in BITS:
            return RuleError(f"{letter}{bits}: a width is 2 to 8 bits, or 16 for bf16", _nearest_form(text))
    if group is not None and weight == 16:
        return RuleError(
            "a group size belongs to quantized weights, and W16 is bf16", f'did you mean "{text.rsplit("-g", 1)[0]}"?'
        )
    if group is not None and group < 2:
        return RuleError(
            f"g{group}: a group is at least 2 weights that share a scale", 'write "-g128", or leave it out'
        )
    return None


def _nearest_form(text: str) -> str:
    """The hint for a string that is not a precision: what it most likely means, else examples."""
    if re.sub(r"[\W_]", "", text).casefold() in ("mxfp4", "mxfp", "fp4", "mx4"):
        return 'did you mean "MXFP4"?'
    match = _LOOSE.match(text.strip())
    if match is None:
        return 'examples: "W4A16KV16-g128", "W8A8KV8", "W16A16KV4", "MXFP4"'
    weight, activation, kv = (_nearest_bits(bits) for bits in match.groups()[:3])
    group = f"-g{int(match.group(4))}" if match.group(4) and weight != 16 and int(match.group(4)) > 1 else ""
    return f'did you mean "W{weight}A{activation}KV{kv}{group}"?'


def _nearest_bits(bits: str | None) -> int:
    return 16 if bits is None else min(BITS, key=lambda known: abs(known - int(bits)))
