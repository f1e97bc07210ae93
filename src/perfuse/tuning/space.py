"""What a sweep searches: for keys of ``RunConfig`` a range or choices, read from TOML laid out as the configuration is.

[optimizer]
lr = { low = 1e-3, high = 3e-2, log = true }
[model]
hidden = { choices = [64, 128, 256] }
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from perfuse.config import RunConfig, parse_config
from perfuse.errors import InputError
from perfuse.files import read_toml
from perfuse.training.resume import MAY_CHANGE

Value: TypeAlias = bool | int | float | str
Values: TypeAlias = dict[str, Value]
"""Key of ``RunConfig`` (``"optimizer.lr"``) -> value."""

_MOST_CHOICES = 100
_SECTIONS = ("model", "optimizer", "schedule", "training")
_REFUSED = {
    "seed": "a seed is not a setting: the luckiest would win",
    "split": "trials must be judged on the same validation curves",
    "loss": "validation losses of two kinds cannot be compared; set it in --config",
    "model.name": "one sweep is of one model; sweep each, and compare the winners",
    "training.max_minutes": "use --trial-minutes",
}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``log`` draws and shows them on a log scale."""

    key: str
    low: float
    high: float
    log: bool = False
    is_whole: bool = False

    def contains(self, value: object) -> bool:
        kinds = (int,) if self.is_whole else (int, float)
        return type(value) in kinds and self.low <= value <= self.high  # type: ignore[operator]

    def plain(self) -> dict[str, object]:
        return {"low": self.low, "high": self.high, **({"log": True} if self.log else {})}


@dataclass(frozen=True)
class Choices:
    """One of a few values, in no order."""

    key: str
    values: tuple[Value, ...]

    def contains(self, value: object) -> bool:
        return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values)

    def plain(self) -> dict[str, object]:
        return {"choices": list(self.values)}


Parameter: TypeAlias = Range | Choices


@dataclass(frozen=True)
class Space:
    """Every parameter that a sweep varies, sorted by key."""

    parameters: tuple[Parameter, ...]

    def contains(self, values: Mapping[str, object]) -> bool:
        """Whether these are exactly a value in range for every parameter."""
        return set(values) == {p.key for p in self.parameters} and all(
            p.contains(values[p.key]) for p in self.parameters
        )

    def plain(self) -> dict[str, dict[str, object]]:
        """As nested plain data, section by section: what ``parse_space`` reads."""
        nested: dict[str, dict[str, object]] = {}
        for p in self.parameters:
            section, name = p.key.split(".")
            nested.setdefault(section, {})[name] = p.plain()
        return nested

    def toml(self) -> str:
        """As a TOML file that ``--space`` reads."""
        lines: list[str] = []
        for section, entries in self.plain().items():
            lines.append(f"[{section}]")
            for name, entry in entries.items():
                assert isinstance(entry, dict)
                inner = ", ".join(f"{k} = {json.dumps(v)}" for k, v in entry.items())
                lines.append(f"{name} = {{ {inner} }}")
        return "\n".join(lines) + "\n"


def load_space(path: Path, base: RunConfig) -> Space:
    """The space in a TOML file.

    Raises:
        InputError: for an unreadable file, and as ``parse_space``.
    """
    return parse_space(read_toml(path, "--space"), base, str(path))


def parse_space(data: Mapping[str, Any], base: RunConfig, where: str = "space") -> Space:
    """A space from nested plain data, every value checked against the type and limits of its key.

    Args:
        data: Section -> name -> ``{low, high, log}`` or ``{choices}``.
        base: The configuration that the values are put into; its model says which keys there are.
        where: What the errors begin with.

    Raises:
        InputError: naming the first key that is unknown, cannot be searched, or has values that it does not allow.
    """
    parameters = [_parameter(key, entry, base, where) for key, entry in _entries(data, where)]
    if not parameters:
        hint = "optimizer.lr = { low = 1e-4, high = 1e-2, log = true }"
        raise InputError("space", "names no key", hint=hint, where=where)
    return Space(tuple(sorted(parameters, key=lambda p: p.key)))


def _entries(data: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for section, content in data.items():
        if section in _REFUSED:
            raise InputError(section, "cannot be searched", hint=_REFUSED[section], where=where)
        if section not in _SECTIONS:
            raise InputError(section, "is no known section", allowed=", ".join(_SECTIONS), where=where)
        if not isinstance(content, dict):
            raise InputError(section, "is no table", value=content, where=where)
        for name, entry in content.items():
            yield f"{section}.{name}", entry


def _parameter(key: str, entry: Any, base: RunConfig, where: str) -> Parameter:
    field = _field(key, base, where)
    if key in _REFUSED:
        raise InputError(key, "cannot be searched", hint=_REFUSED[key], where=where)
    if key in MAY_CHANGE and key not in ("training.epochs", "training.early_stopping_patience"):
        raise InputError(key, "cannot be searched", hint="it does not touch what is learnt", where=where)
    forms = "{ low, high } with or without log = true, or { choices = [...] }"
    if not isinstance(entry, dict):
        raise InputError(key, "is neither range nor choices", value=entry, allowed=forms, where=where)
    if set(entry) == {"choices"}:
        return _choices(key, entry["choices"], field, where)
    if not {"low", "high"} <= set(entry) <= {"low", "high", "log"}:
        raise InputError(key, "is neither range nor choices", value=", ".join(entry), allowed=forms, where=where)
    return _range(key, entry, field, where)


def _field(key: str, base: RunConfig, where: str) -> FieldInfo:
    section, name = key.split(".", 1)
    record: BaseModel = getattr(base, section)
    fields = type(record).model_fields
    if name not in fields:
        kind = f" of {base.model.name}" if section == "model" else ""
        raise InputError(key, f"is no known key{kind}", allowed=", ".join(fields), where=where)
    return fields[name]


def _choices(key: str, values: Any, field: FieldInfo, where: str) -> Choices:
    if not isinstance(values, list) or not 2 <= len(values) <= _MOST_CHOICES:
        raise InputError(f"{key}: choices", "is no list of 2 to 100 values", value=values, where=where)
    for number, value in enumerate(values):
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"{key}: choices", "holds what is no plain value", value=value, where=where)
        _check_value(key, value, field, where)
        if Choices(key, tuple(values[:number])).contains(value):
            raise InputError(f"{key}: choices", "holds a value twice", value=value, where=where)
    return Choices(key, tuple(values))


def _range(key: str, entry: Mapping[str, Any], field: FieldInfo, where: str) -> Range:
    kinds = _kinds(field)
    if not kinds & {int, float}:
        raise InputError(key, "takes no numbers", allowed="{ choices = [...] }", where=where)
    is_whole, log = float not in kinds, entry.get("log", False)
    for name in ("low", "high"):
        value = entry[name]
        if type(value) not in ((int,) if is_whole else (int, float)):
            allowed = "a whole number" if is_whole else "a number"
            raise InputError(f"{key}: {name}", "is of a wrong type", value=value, allowed=allowed, where=where)
        _check_value(key, value, field, where)
    low, high = entry["low"], entry["high"]
    if not low < high:
        raise InputError(f"{key}: low", "is not below high", value=low, allowed=f"< {high}", where=where)
    if not isinstance(log, bool):
        raise InputError(f"{key}: log", "is of a wrong type", value=log, allowed="true or false", where=where)
    if log and low <= 0:
        raise InputError(f"{key}: low", "has no logarithm", value=low, allowed="> 0 with log = true", where=where)
    return Range(key, low if is_whole else float(low), high if is_whole else float(high), log, is_whole)


def _kinds(field: FieldInfo) -> set[object]:
    """The types a field takes, without None; its literals' types for choices of names."""
    annotation = field.annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return {part for part in parts if part is not NoneType}


def _check_value(key: str, value: Value, field: FieldInfo, where: str) -> None:
    """Hold one value against the field's own type and limits; nothing is converted but whole numbers to floats."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(key, "is not finite", value=value, where=where)
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        raise InputError(key, "is not allowed", value=value, allowed=error.errors()[0]["msg"], where=where) from None


def merged(base: RunConfig, values: Mapping[str, Value]) -> RunConfig:
    """The base configuration with these values; what nobody set stays unset.

    Raises:
        InputError: where the values do not go together (a ``hidden`` that ``heads`` does not divide, say).
    """
    data = base.model_dump(mode="json", exclude_unset=True)
    data.setdefault("model", {})["name"] = base.model.name
    for key, value in values.items():
        section, name = key.split(".")
        data.setdefault(section, {})[name] = value
    return parse_config(data, "trial")


def base_values(space: Space, base: RunConfig) -> Values:
    """The values of a resolved configuration, as far as the space holds them: where a sweep begins."""
    found: Values = {}
    for p in space.parameters:
        section, name = p.key.split(".")
        value = getattr(getattr(base, section), name)
        if value is not None and p.contains(value):
            found[p.key] = value
    return found


_EMA: tuple[Value, ...] = (0.0, 0.99, 0.999)
_DECAY = (1e-6, 1e-2)
_DEFAULTS: dict[str, dict[str, tuple[float, float, bool] | tuple[Value, ...]]] = {
    "flux": {
        "optimizer.lr": (1e-3, 5e-2, True), "optimizer.weight_decay": (*_DECAY, True), "model.hidden": (16, 32, 64),
        "model.layers": (1, 3, False), "training.batch_size": (64, 128, 256), "training.ema_decay": _EMA,
    },
    "loglinear-rates": {
        "optimizer.lr": (3e-3, 1e-1, True), "optimizer.weight_decay": (*_DECAY, True),
        "training.batch_size": (64, 128, 256), "training.ema_decay": _EMA,
    },
    "recurrent": {
        "optimizer.lr": (1e-3, 3e-2, True), "optimizer.weight_decay": (*_DECAY, True), "model.hidden": (32, 64, 128),
        "model.layers": (1, 3, False), "model.steps": (2, 3, 4, 6), "model.dropout": (0.0, 0.2, False),
        "training.batch_size": (32, 64, 128), "training.ema_decay": _EMA,
    },
    "lstm": {
        "optimizer.lr": (1e-3, 3e-2, True), "optimizer.weight_decay": (*_DECAY, True), "model.hidden": (64, 128, 256),
        "model.layers": (1, 3, False), "model.dropout": (0.0, 0.2, False), "training.batch_size": (32, 64, 128),
        "training.ema_decay": _EMA,
    },
    "mlp": {
        "optimizer.lr": (5e-4, 3e-2, True), "optimizer.weight_decay": (*_DECAY, True),
        "model.hidden": (64, 128, 256, 512), "model.layers": (2, 5, False), "model.dropout": (0.0, 0.2, False),
        "training.batch_size": (32, 64, 128, 256), "training.ema_decay": _EMA,
    },
}  # fmt: skip
"""Per model: (low, high, log) of a range, which is told by its bool at the end, or choices."""


def default_space(base: RunConfig) -> Space:
    """What is searched unless told otherwise, widened to hold the resolved base's own values, with which it begins.

    Widths that the base's other settings forbid (``recurrent``: heads must divide hidden) are left out.
    """
    parameters: list[Parameter] = []
    for key, entry in _DEFAULTS[base.model.name].items():
        section, name = key.split(".")
        own = getattr(getattr(base, section), name)
        if isinstance(entry[-1], bool):
            low, high = entry[0], entry[1]
            assert not isinstance(low, str) and not isinstance(high, str)
            is_whole = isinstance(low, int)
            own = own if own is not None and (own > 0 or not entry[-1]) else low
            parameters.append(Range(key, min(low, own), max(high, own), entry[-1], is_whole))
            continue
        values = sorted({*entry, own} if own is not None else set(entry))
        values = [v for v in values if _goes_with(base, key, v)]
        if len(values) > 1:
            parameters.append(Choices(key, tuple(values)))
    return Space(tuple(sorted(parameters, key=lambda p: p.key)))


def _goes_with(base: RunConfig, key: str, value: Value) -> bool:
    try:
        merged(base, {key: value})
    except InputError:
        return False
    return True
