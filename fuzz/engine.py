"""Sources of inputs: hypothesis (property-based), atheris (coverage-guided), and plain random edits."""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.guard import Guard
    from fuzz.targets import Target

_CURRENT_BYTES = 2**18 + 16
_REPORT_EVERY = 500
_HANG_S = 600
"""libFuzzer counts wall seconds; the guard counts CPU seconds, and much fewer."""
_AFRESH = 0.5
"""Share of atheris' inputs that are made from a valid file, not from what an earlier input reached."""
_WARM = 0.2
"""Memory is compared from this share of the inputs on: caches are full by then."""


class Recorder:
    """The input that is being read, in a file that outlives this process, and the counts so far."""

    def __init__(self, folder: Path, wanted: int) -> None:
        self._counts, self.wanted = folder / "counts.json", wanted
        self._warm_bytes = 0
        path = folder / "current"
        path.write_bytes(bytes(_CURRENT_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _CURRENT_BYTES)

    def begin(self, data: bytes) -> None:
        """Note the input before it is read."""
        self._map[0:4] = len(data).to_bytes(4, "little")
        self._map[8 : 8 + len(data)] = data

    def report(self, guard: Guard, end: bool = False) -> None:
        """Write the counts, now and then and at the end."""
        from fuzz.guard import rss_bytes

        if guard.inputs == max(1, int(_WARM * self.wanted)):
            self._warm_bytes = rss_bytes()
        if end or guard.inputs % _REPORT_EVERY == 0:
            counts = {
                "inputs": guard.inputs, "accepted": guard.accepted, "max_cpu_s": round(guard.max_cpu_s, 4),
                "growth_bytes": rss_bytes() - self._warm_bytes if self._warm_bytes else 0,
                "findings": {name: [data.hex() for data in kept] for name, kept in guard.findings.items()},
                "end": end,
            }  # fmt: skip
            part = self._counts.with_suffix(".part")
            part.write_text(json.dumps(counts))
            part.replace(self._counts)


def current_input(folder: Path) -> bytes:
    """The input that a process was reading when it ended."""
    raw = (folder / "current").read_bytes()
    return raw[8 : 8 + int.from_bytes(raw[:4], "little")]


def work(name: str, engine: str, wanted: int, seed: int, folder: Path) -> None:
    """Give a target ``wanted`` inputs; results go to ``folder``.

    Args:
        name: Of the target.
        engine: A key of ``ENGINES``.
        wanted: How many inputs.
        seed: Of the choice of edits.
        folder: For files, counts and the current input.
    """
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["perfuse"], enable_loader_override=False):
            from fuzz.guard import Guard, limit_memory
            from fuzz.targets import target

            made = target(name, folder / "files")
    else:
        from fuzz.guard import Guard, limit_memory
        from fuzz.targets import target

        made = target(name, folder / "files")
    guard, recorder = Guard(made), Recorder(folder, wanted)
    for data in made.seeds:
        guard.target.read(data)  # valid files are read, or the fuzzing of what is behind is worth nothing
    limit_memory()
    guard.arm()

    def one(data: bytes) -> None:
        recorder.begin(data)
        guard.check(data)
        recorder.report(guard, guard.inputs >= wanted)

    ENGINES[engine](made, one, lambda: guard.inputs, wanted, seed, folder)


def _random(
    made: Target, one: Callable[[bytes], None], done: Callable[[], int], wanted: int, seed: int, _: Path
) -> None:
    from fuzz.mutate import mutated

    random = Random(seed)
    while done() < wanted:
        edits = [random.randrange(2**32) for _ in range(1 + min(3, int(random.expovariate(1.2))))]
        one(mutated(random.choice(made.seeds), made.kind, edits))


def _hypothesis(
    made: Target, one: Callable[[bytes], None], done: Callable[[], int], wanted: int, seed: int, _: Path
) -> None:
    """Rounds of 1,000, each with a seed of its own: hypothesis remembers every example of a round."""
    import hypothesis
    from hypothesis import strategies as st

    from fuzz.mutate import mutated

    choice = st.sampled_from(made.seeds)
    edits = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4)

    def check(data: bytes, changes: list[int]) -> None:
        if done() < wanted:
            one(mutated(data, made.kind, changes))

    rounds = 0
    while done() < wanted:
        settings = hypothesis.settings(
            max_examples=min(1000, wanted - done()), deadline=None, database=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        hypothesis.seed(seed * 100_003 + rounds)(settings(hypothesis.given(choice, edits)(check)))()
        rounds += 1


def _atheris(
    made: Target, one: Callable[[bytes], None], done: Callable[[], int], wanted: int, seed: int, folder: Path
) -> None:
    """libFuzzer chooses what to change further: whatever reached a new line of Perfuse."""
    import atheris

    from fuzz.mutate import MAX_INPUT_BYTES, mutated

    corpus = Path(tempfile.mkdtemp(dir=folder))
    for i, data in enumerate(made.seeds):
        (corpus / f"seed-{i}").write_bytes(data)

    def test_one_input(data: bytes) -> None:
        one(data)
        if done() >= wanted:
            os._exit(0)

    def change(data: bytes, max_size: int, edit_seed: int) -> bytes:
        random = Random(edit_seed)
        edits = [random.randrange(2**32) for _ in range(1 + min(3, int(random.expovariate(1.2))))]
        start = random.choice(made.seeds) if random.random() < _AFRESH else data
        return mutated(start, made.kind, edits)[:max_size]

    options = [
        f"-runs={wanted * 2}", f"-seed={seed + 1}", f"-max_len={MAX_INPUT_BYTES}", f"-timeout={_HANG_S}",
        "-rss_limit_mb=0",
        "-verbosity=0", "-reload=0", "-len_control=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one_input, custom_mutator=change)
    atheris.Fuzz()


ENGINES: dict[str, Callable[..., None]] = {"hypothesis": _hypothesis, "atheris": _atheris, "random": _random}
