"""A run's configuration as a TOML file that ``perfuse train --config`` reads back."""

from __future__ import annotations

from perfuse.config import RunConfig

CONFIG_FILE = "config.toml"


def config_toml(config: RunConfig) -> str:
    """The configuration as TOML that ``perfuse train --config`` reads back.

    Values that the user left to their defaults are written as comments, so that "automatic" stays automatic.
    """
    lines = [f"seed = {config.seed}"]
    for section in ("model", "split", "loss", "optimizer", "schedule", "training"):
        record = getattr(config, section)
        lines.append(f"\n[{section}]")
        tables = []
        for name in type(record).model_fields:
            value = getattr(record, name)
            if value is None:
                continue
            if isinstance(value, dict):
                tables += [f"\n[{section}.{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in value.items())]
                continue
            automatic = (section, name) in _AUTOMATIC and name not in record.model_fields_set
            lines.append(f"{'# automatic: ' if automatic else ''}{name} = {_toml(value)}")
        lines += tables
    return "\n".join(lines) + "\n"


_AUTOMATIC = {("training", "validate_every_epochs")}


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _toml(name)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
    return repr(value)
