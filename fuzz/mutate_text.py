"""Edits of text files: tables, TOML, JSON and JSON lines."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

NUMBERS = (
    "0", "-0", "-1", "1", "2", "0.5", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "1e999", "9" * 25, "9" * 400,
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "4294967296", "100001", "1e9", "1e15",
    "1_000", "\u0661\u0662", "\u00b2", "0x10", "1.5.2", "True", "1e",
)  # fmt: skip
TEXTS = (
    "", " ", "\x00", "\x1b[2J\x07", "\n", "\r", "\u2028", "\x85", "\u00e9", "\ufeff", "\U0001f48a", "A" * 300,
    "a" * 70_000,
    "../../etc/passwd", "/dev/zero", "shard-00000.arrow", "NA", ".", "<1", "<", "<-1", '"', "'", ",", "1,2", "1;;2",
    "a\tb",
    "C", "#", "=1+1", "%s%n", "{0.__class__}", "null", "1 mg/L", "ng/mL", "mg/kg", "umol/L", "/kg", "h", "min", "degC",
    "oral", "iv_infusion", "hub", "circulation", "circulation-ps", "plasma", "tissue_homogenate", "liver", "blood",
    "dose", "observation", "0..24 h by 0.5 h", "1e-9 h", "0..1e9 h by 1e-9 h",
)  # fmt: skip
KEYS = (
    "drug", "subject", "event", "time", "dose", "addl", "ii", "lloq", "conc", "organ", "topology", "duration", "ID",
    "TIME", "AMT", "DV", "EVID", "CMT", "SS", "II", "ADDL", "RATE", "BLQ", "MDV", "WT", "kp_liver", "kp_nowhere",
    "vmax_mg_h_1", "km_u_mg_l_1", "mw_g_mol", "logp", "pka_acid_1", "body_weight_kg", "n", "file", "seed", "saturable",
    "n_doses", "interval_h", "times_h", "curve_id", "matrix", "__class__", "$tuple", "$array", "$numpy", "$dict",
)  # fmt: skip
_TOML_VALUES = (
    *NUMBERS, "0x" + "f" * 6000, "true", "[]", "{}", '""', '"x"', "[1, 2]", "[[1]]", "{ a = 1 }", "1979-05-27",
    "1979-05-27T07:32:00Z", "07:32:00", "'''a\nb'''", '"\\u0000"', '"\\u001b"', "[" * 200 + "]" * 200, "[" * 3000,
    "{a=" * 200 + "1" + "}" * 200, '["brain", "brain"]', '"0..24 h by 1 h"', '"2 mg/kg"', '"1 1/h"',
    '"' + "a" * 5000 + '"',
)  # fmt: skip
_TOML_LINES = (
    "[a]", "[[a]]", "[[dose]]", "[[saturable]]", "[drug]", "[population]", "[subject]", "[output]", "[sensitivity]",
    "[[organ]]", "a.b.c = 1", "a." * 900 + "a = 1", "= 1", "[", "# x", "\x00", "[training]", "[model]",
    'file = "../x.toml"',
    'file = "/etc/passwd"', 'name = "hub"',
)  # fmt: skip
_TOKEN = re.compile(r'"[^"\n]*"|\[[^\[\]\n]*\]|\{[^{}\n]*\}|[-+]?\d[\w.+-]*|true|false')
_KEY = re.compile(r"(?m)^[ \t]*[\w.]+(?=[ \t]*=)|(?<=[{,])\s*\w+(?= =)")
_RAW_JSON = (
    "9" * 5000, "1e999", "-1e999", "NaN", "Infinity", "[" * 100_000, "[" * 60 + "]" * 60, '{"a":' * 2000, '"\\ud800"',
    '"\\u0000"', "18446744073709551616", "9" * 400, "-0", "1E400", '{"a":1,"a":2}', "[[]", "tru", '"\\x"', "\ufeff",
)  # fmt: skip


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(
        "utf-8", "surrogatepass" if not any("\udc80" <= c <= "\udcff" for c in text) else "surrogateescape"
    )


def _odd(random: Random) -> str:
    return random.choice(random.choice((NUMBERS, TEXTS, KEYS)))


def edit_table(data: bytes, random: Random) -> bytes:
    """A cell, a row or a column of a table with separators of any kind."""
    lines = _text(data).split("\n")
    separator = next((s for s in ("\t", ",", " ") if s in lines[0]), ",")
    rows = [line.split(separator) for line in lines]
    row = rows[random.randrange(len(rows))]
    at = random.randrange(len(row))
    kind = random.randrange(12)
    if kind < 4:
        row[at] = _odd(random) if kind else random.choice(random.choice(rows))
    elif kind == 4:
        rows[0][random.randrange(len(rows[0]))] = _odd(random)
    elif kind == 5:
        rows.remove(row)
    elif kind == 6:
        rows.insert(random.randrange(len(rows)), list(row))
    elif kind == 7:  # a column more, a column fewer
        name, cell = _odd(random), _odd(random)
        rows = [[*r, cell if i else name] for i, r in enumerate(rows)]
    elif kind == 8:
        rows = [r[:at] + r[at + 1 :] for r in rows]
    elif kind == 9 and random.random() < 0.1:  # wide, or long
        many = random.choice((50, 2000))
        rows = [r + r[:1] * many for r in rows] if random.random() < 0.3 else rows[:1] + rows[1:] * (many // 10)
    elif kind == 10:
        random.shuffle(rows)
    else:
        row[at] = random.choice(('"', "'", "\r", "\n", '""', "#", ";")) + row[at]
    return _bytes("\n".join(separator.join(r) for r in rows))


def edit_toml(data: bytes, random: Random) -> bytes:
    """A value, a key or a line."""
    text = _text(data)
    kind = random.randrange(10)
    found = list((_TOKEN if kind < 6 else _KEY).finditer(text))
    if kind < 8 and found:
        match = random.choice(found)
        new = random.choice(_TOML_VALUES) if kind < 5 else random.choice(found).group()
        if kind == 5:
            new = json.dumps(random.choice(TEXTS))
        if kind == 7:
            new = random.choice(KEYS)
        return _bytes(text[: match.start()] + new + text[match.end() :])
    lines = text.split("\n")
    at = random.randrange(len(lines))
    if kind == 8:
        lines.insert(at, random.choice(_TOML_LINES))
    else:
        moved = lines.pop(at)
        if random.random() < 0.6:
            lines.insert(random.randrange(len(lines) + 1), moved)
            lines.insert(at, moved)
    return _bytes("\n".join(lines))


def _places(value: Any, out: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything inside plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        out.append((value, key))
        _places(inner, out)
    return out


def _odd_json(random: Random) -> Any:
    return random.choice((
        None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.5, 1e308, 1e-320, float("inf"),
        float("nan"),
        "", "x", "\x00", "\x1b[2J", "a\nb", "\ud800", "../x", "a" * 5000, [], {}, [1], [[[]]], {"a": 1}, {"$tuple": []},
        {"$tuple": 1}, {"$array": ["float64", [2**40], ""]}, {"$array": ["float64", [0, 2**62, 2**62], ""]},
        {"$numpy": ["bool", "AA=="]}, {"$enum": ["a", "b"]}, {"$dict": [[{"a": 1}, 2]]}, {"$dict": 1}, {"$bytes": "?"},
        {"$float": []}, {"$dict": [[[1], 2]]}, {"$float": "nan"}, "9" * 30, 2, 3, 1e15,
    ))  # fmt: skip


def edit_json(data: bytes, random: Random) -> bytes:
    """A value or a key of plain data, or text that no writer of JSON would make."""
    try:
        value = json.loads(_text(data))
        places = _places(value, [])
    except (ValueError, RecursionError):
        places = []
    if not places:
        at = random.randrange(len(data) + 1)
        return data[:at] + _bytes(random.choice(_RAW_JSON)) + data[at:]
    inside, key = random.choice(places)
    if random.random() < 0.4:  # near the top, where few of the many are
        inside, key = random.choice(places[: 1 + len(places) // 8])
    kind = random.randrange(9)
    raw = None
    if kind < 4:
        inside[key] = _odd_json(random)
    elif kind == 4:
        source, name = random.choice(places)
        inside[key] = json.loads(json.dumps(source[name]))
    elif kind == 5:
        del inside[key]
    elif kind == 6 and isinstance(inside, dict):
        inside[random.choice(KEYS)] = inside[key] if random.random() < 0.5 else inside.pop(key)
    elif kind == 7 and isinstance(inside, list):
        inside += inside * random.randrange(1, 4)
    else:
        raw, inside[key] = random.choice(_RAW_JSON), "\U0010fffd"
    text = json.dumps(value, ensure_ascii=False)
    return _bytes(text if raw is None else text.replace('"\U0010fffd"', raw))


def edit_jsonl(data: bytes, random: Random) -> bytes:
    """One line, or the lines."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    kind = random.randrange(6)
    if kind < 4:
        lines[at] = edit_json(lines[at], random)
    elif kind == 4:
        lines.insert(at, random.choice(lines))
    else:
        lines.insert(at, _bytes(random.choice(_RAW_JSON)))
    return b"\n".join(lines)
