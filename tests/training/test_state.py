from __future__ import annotations

import json
import math
from enum import Enum, IntEnum

import numpy as np
import pytest

from perfuse.training.state import StateError, dumps, loads


class Colour(Enum):
    RED = "r"


class Level(IntEnum):
    HIGH = 3


VALUES = [
    None, True, False, 0, -(2**70), 1.5, 0.1 + 0.2, math.inf, -math.inf, "text", "", b"\x00\xff", (), (1, (2.0, "x")),
    [1, [2, (3,)]], {"a": (1, 2), "b": {"c": math.inf}}, {"$float": "inf"}, {1: "a", (2, 3): [b"x"]}, {"$tuple": [1]},
    np.float32(1.1), np.float64(0.1), np.int64(-5), np.bool_(True), np.uint8(200), ["a", "b"],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=[repr(v)[:30] for v in VALUES])
def test_values_and_their_types_survive(value: object) -> None:
    back = loads(dumps(value))
    assert back == value
    assert type(back) is type(value)


def test_nan_survives() -> None:
    back = loads(dumps((math.nan, np.float32("nan"))))
    assert isinstance(back, tuple)
    assert math.isnan(back[0])
    assert np.isnan(back[1])


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "float16", "float64"])
def test_arrays_survive(dtype: str) -> None:
    value = np.arange(6).reshape(2, 3).astype(dtype)
    back = loads(dumps(value))
    assert isinstance(back, np.ndarray)
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)


def test_big_endian_arrays_come_back_equal() -> None:
    np.testing.assert_array_equal(loads(dumps(np.arange(3, dtype=">i4"))), [0, 1, 2])  # type: ignore[arg-type]


def test_enums_come_back_only_where_the_reader_names_them() -> None:
    text = dumps({"c": Colour.RED, "l": Level.HIGH})
    assert loads(text, [Colour, Level]) == {"c": Colour.RED, "l": Level.HIGH}
    with pytest.raises(StateError, match=r"malformed \$enum"):
        loads(text, [Colour])


def test_the_text_is_plain_json() -> None:
    assert json.loads(dumps({"a": math.inf})) == {"a": {"$float": "inf"}}


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["text"]), np.array([object()]), 1j, print])
def test_other_types_are_refused_when_writing(value: object) -> None:
    with pytest.raises(StateError, match="cannot write"):
        dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "NaN", '{"a": Infinity}',
        '{"$float": "1.0"}', '{"$float": ["x"]}', '{"$tuple": 3}', '{"$bytes": "%%"}',
        '{"$unknown": 1}', '{"$tuple": [], "more": 1}', '{"$numpy": ["object", "AAAA"]}', '{"$numpy": ["int8"]}',
        '{"$array": ["int64", [1000000000000], "AAAA"]}',
        '{"$array": ["int8", [-1], ""]}', '{"$array": ["int8", 3, ""]}',
        '{"$enum": ["Colour", "BLUE"]}', '{"$enum": ["os", "system"]}', '{"$dict": 5}', '{"$dict": [[[], 1]]}',
        "[" * 100 + "]" * 100, "[" * 100_000, '{"a": ' + "9" * 10_000 + "}",
    ],
    ids=lambda t: t[:30],
)  # fmt: skip
def test_forged_text_gives_one_clear_line(text: str) -> None:
    with pytest.raises(StateError) as caught:
        loads(text, [Colour])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
