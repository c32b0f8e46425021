"""One parameters class per method. The TOML key `name` picks the class; its fields are what bears on the numbers.

A method is added by a class here and a module of the same name in `suite/methods/`. Naming the method alone means the
settings of its paper: every field but `precision` has that default, and `default_precisions` stands where none are
given. What the class cannot do (a precision, a pair of options) it refuses in a validator, before anything runs.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from suite.spec.errors import RuleError
from suite.spec.precision import Precision


class Calibration(BaseModel):
    """The text a method looks at: `num_samples` windows of `seq_len` tokens from `source`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str = Field(min_length=1)
    num_samples: int = Field(ge=1)
    seq_len: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.source} {self.num_samples}x{self.seq_len}"


class MethodParams(BaseModel):
    """What every method has: a name, a precision, and the models it is meant for (None: all of the spec).

    `models` selects cells and bears on no number, so it is no part of `identity()`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    numeric_version: ClassVar[int] = 1  # raise it when the same parameters give other numbers
    default_precisions: ClassVar[tuple[str, ...]] = ()
    calibrated: ClassVar[bool] = False  # True: the class gives `calibration` its paper's default
    seconds_per_gib: ClassVar[float] = 0.0  # assumed time for 1 GiB of bf16 weights on one core; for estimates alone

    name: str
    precision: Precision
    models: tuple[str, ...] | None = Field(default=None, min_length=1)
    calibration: Calibration | None = None

    @property
    def quantizes(self) -> bool:
        """Whether there is a quantize stage: BF16 is served from the checkpoint itself."""
        return self.precision.quantized

    @property
    def row_sharded(self) -> bool:
        """Whether `row_parallel_groups` of the model bears on the numbers: only where activations are quantized."""
        return self.precision.activation_bits < 16

    def identity(self) -> dict[str, Any]:
        """Everything about the method that bears on the numbers."""
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "models"}
        return {**fields, "numeric_version": self.numeric_version}

    def parameters(self) -> dict[str, Any]:
        """The method's own parameters: all fields but those every method has."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in MethodParams.model_fields}

    def label(self) -> str:
        """Short text of the parameters that are not at their default: "" for the paper's settings."""
        fields = type(self).model_fields
        changed = {name: value for name, value in self.parameters().items() if value != fields[name].default}
        return " ".join(self._label_of(name, value) for name, value in changed.items())

    def _label_of(self, name: str, value: Any) -> str:
        if isinstance(value, bool):
            return name if value else f"no-{name}"
        return f"{name}={value}"

    @field_validator("models")
    @classmethod
    def _distinct_models(cls, models: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if models is not None and len(set(models)) < len(models):
            raise RuleError("names a model twice", "keep each once")
        return models

    @field_validator("calibration", mode="before")
    @classmethod
    def _completed(cls, calibration: Any) -> Any:
        """What a calibration table leaves unsaid has the paper's default."""
        if calibration is not None and not cls.calibrated:
            raise RuleError("this method looks at no data", "remove the key")
        default = cls.model_fields["calibration"].default
        if isinstance(calibration, Mapping) and isinstance(default, Calibration):
            return {**dict(default), **calibration}
        return calibration


class Bf16Params(MethodParams):
    """The unquantized model. Always in the matrix, once per model, whether a spec names it or not."""

    default_precisions: ClassVar[tuple[str, ...]] = ("W16A16KV16",)

    name: Literal["bf16"] = "bf16"
    precision: Precision = Precision()

    @model_validator(mode="after")
    def _nothing_quantized(self) -> "Bf16Params":
        if self.precision.quantized:
            raise RuleError(
                "bf16 quantizes nothing", 'its one precision is "W16A16KV16"; leave the key out', "precision"
            )
        if self.models is not None:
            raise RuleError(
                "bf16 is in the matrix for every model: each drop is against it", "remove the key", "models"
            )
        return self


class RtnParams(MethodParams):
    """Round to nearest: scales from each group's range, no data.

    Default precision and symmetry: arXiv:2601.14888's W3G128, scale = max|w| / (2 ** (bits - 1) - 1).
    """

    default_precisions: ClassVar[tuple[str, ...]] = ("W3A16KV16-g128",)
    seconds_per_gib: ClassVar[float] = 15.0

    name: Literal["rtn"] = "rtn"
    symmetric: bool = True

    @field_validator("precision")
    @classmethod
    def _weight_only(cls, precision: Precision) -> Precision:
        if precision.format != "int" or (precision.activation_bits, precision.kv_bits) != (16, 16):
            raise RuleError("rtn quantizes weights alone, to integers", 'a precision such as "W4A16KV16-g128"')
        if precision.weight_bits not in (2, 3, 4, 8):
            raise RuleError("rtn does W2, W3, W4 and W8", _nearest_width(precision))
        return precision

    def _label_of(self, name: str, value: Any) -> str:
        return "asymmetric" if name == "symmetric" else super()._label_of(name, value)


def _nearest_width(precision: Precision) -> str:
    if precision.weight_bits == 16:
        return 'the unquantized model is `name = "bf16"`, in the matrix without being named'
    width = min((2, 3, 4, 8), key=lambda bits: abs(bits - precision.weight_bits))
    return f'did you mean "{precision.model_copy(update={"weight_bits": width})}"?'


METHODS: dict[str, type[MethodParams]] = {"bf16": Bf16Params, "rtn": RtnParams}
