"""An evaluation read back from disk, held against what ``perfuse evaluate`` writes: a file is not trusted."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from perfuse.errors import InputError
from perfuse.evaluation.evaluate import SCHEMA_VERSION, Evaluation
from perfuse.evaluation.metrics import EXPOSURES

_OPEN: dict[str, dict[str, object]] = {
    "model": {"label": str},
    "data": {"path": str, "scope": str, "simulated": bool | None},
    "speed": {"predict_curves_per_s": float | None, "batch_size": int},
    "provenance": {
        "perfuse": str, "python": str, "packages": dict[str, str], "processor": str, "cores": int | None,
        "system": str, "created_utc": str,
    },
    "exposure": dict.fromkeys(EXPOSURES, object),
}  # fmt: skip
"""What readers rely on in the parts whose type leaves their keys open."""
_LARGEST_INTEGER = 2**63 - 1


def check_evaluation(stored: dict[str, object], where: str) -> Evaluation:
    """The evaluation that a JSON object is.

    Args:
        stored: Contents of ``evaluation.json``.
        where: The folder, for the message.

    Raises:
        InputError: for another schema version, or naming the first key that is missing or of a wrong type.
    """
    version = stored.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise InputError(
            "evaluation schema_version", "is of another version of Perfuse",
            value=version if isinstance(version, int | str) else "none", allowed=str(SCHEMA_VERSION),
            hint="run `perfuse evaluate` again", where=where,
        )  # fmt: skip
    problem = _problem(stored, Evaluation, "")
    for key, kinds in _OPEN.items():
        problem = problem or _missing_or_wrong(cast("dict[str, object]", stored[key]), kinds, key)
    for part in ("baselines", "against"):
        contenders = {} if problem else cast("dict[str, dict[str, object]]", stored[part])
        for name, contender in contenders.items():
            exposure = cast("dict[str, object]", contender["exposure"])
            problem = problem or _missing_or_wrong(exposure, _OPEN["exposure"], f"{part}.{name}.exposure")
    if problem:
        raise InputError("evaluation", f"is damaged: {problem}", hint="run `perfuse evaluate` again", where=where)
    return cast(Evaluation, stored)


def _missing_or_wrong(value: dict[str, object], kinds: dict[str, object], at: str) -> str:
    for key, kind in kinds.items():
        name = f"{at}.{key}" if at else key
        problem = _problem(value[key], kind, name) if key in value else f"{name} is missing"
        if problem:
            return problem
    return ""


def _problem(value: object, kind: object, at: str) -> str:
    """What is wrong with a JSON value of an annotated type; '' when nothing is."""
    if kind is object:
        return ""
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        problems = [_problem(value, option, at) for option in of]
        return "" if "" in problems else problems[0]
    if is_typeddict(kind) or origin is dict:
        if not isinstance(value, dict):
            return f"{at} is no object"
        kinds = dict.fromkeys(value, of[1]) if origin is dict else get_type_hints(kind)
        return _missing_or_wrong(value, kinds, at)
    if origin is list:
        if not isinstance(value, list):
            return f"{at} is no list"
        return next(filter(None, (_problem(item, of[0], at) for item in value)), "")
    if not isinstance(kind, type):
        raise TypeError(f"{at}: {kind} is no type that an evaluation may hold")
    return "" if _is_plain(value, kind) else f"{at} is no {'null' if kind is NoneType else kind.__name__}"


def _is_plain(value: object, kind: type) -> bool:
    """Whether a JSON scalar is of a type; whole numbers are floats too, true and false are no numbers."""
    if kind in (int, float) and type(value) is int:
        return abs(value) <= _LARGEST_INTEGER
    return type(value) is kind
