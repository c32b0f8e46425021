"""Sweeps: a list where one value is declared stands for one table per element.

    { seq_len = [2048, 4096], symmetric = [true, false] }   ->   four tables

Nested tables expand too. Each expanded table remembers where in the file every value came from, so that an error in one
of them points at the element that is wrong.
"""

import itertools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

Location = tuple[str | int, ...]
MAX_COMBINATIONS = 10_000


@dataclass(frozen=True)
class Expanded:
    """One table of a sweep: its values, and per location in them the key path in the file."""

    values: dict[str, Any]
    origin: dict[Location, str]


@dataclass(frozen=True)
class Axis:
    """A location, and the values it takes, each with its key path."""

    location: Location
    points: tuple[tuple[Any, str], ...]


def axes(table: Mapping[str, Any], model: type[BaseModel] | None, path: str, at: Location = ()) -> list[Axis]:
    """The axes of a table: one per value, of length 1 where nothing is swept. `model` tells lists from sweeps."""
    found: list[Axis] = []
    for key, value in table.items():
        inner, is_list = declared(model, key)
        here = f"{path}.{key}"
        if isinstance(value, Mapping) and inner is not None and not is_list:
            found += axes(value, inner, here, (*at, key)) or [Axis((*at, key), ((value, here),))]
        elif isinstance(value, list) and not is_list:
            found.append(Axis((*at, key), tuple((each, f"{here}[{i}]") for i, each in enumerate(value))))
        else:
            found.append(Axis((*at, key), ((value, here),)))
    return found


def size(found: list[Axis]) -> int:
    """How many tables the axes expand to."""
    return math.prod(len(axis.points) for axis in found)


def expand(found: list[Axis]) -> list[Expanded]:
    """All combinations, the first axis varying slowest."""
    return [_combine(found, points) for points in itertools.product(*(axis.points for axis in found))]


def _combine(found: list[Axis], points: tuple[tuple[Any, str], ...]) -> Expanded:
    values: dict[str, Any] = {}
    origin: dict[Location, str] = {}
    for axis, (value, path) in zip(found, points, strict=True):
        target = values
        for key in axis.location[:-1]:
            target = target.setdefault(str(key), {})
        target[str(axis.location[-1])] = value
        origin[axis.location] = path
    return Expanded(values, origin)


def declared(model: type[BaseModel] | None, key: str | int) -> tuple[type[BaseModel] | None, bool]:
    """What a field is declared as: the model in its annotation (or None), and whether it is a list by nature."""
    field = None if model is None else model.model_fields.get(str(key))
    if field is None:
        return None, False
    parts = list(_parts(field.annotation))
    inner = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
    return inner, any(typing.get_origin(part) is tuple for part in parts)


def _parts(annotation: Any) -> typing.Iterator[Any]:
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _parts(argument)
