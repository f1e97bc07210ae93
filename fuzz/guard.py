"""What an input may do to a reader: return, or be refused in one short printable line; nothing else, and soon."""

from __future__ import annotations

import resource
import signal
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from fuzz.targets import Target
from perfuse.errors import PerfuseError

MAX_CPU_S = 3.0
"""Longest that one input may take, in CPU seconds: the machine may be busy."""
MAX_LINE = 2000
"""Longest message, in characters."""
MEMORY_MARGIN_BYTES = 2 * 2**30
_KEPT_EACH = 2


class TooSlow(BaseException):
    """An input that takes longer than ``MAX_CPU_S``; no ``Exception``, so that no reader swallows it."""


def limit_memory() -> None:
    """Let this process have ``MEMORY_MARGIN_BYTES`` more address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_MARGIN_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def rss_bytes() -> int:
    """Memory that is this process's own (RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def refuse_line(text: str) -> str:
    """What is the matter with a message; '' when it is one short printable line."""
    if len(text.splitlines()) != 1:
        return "message is not one line"
    if not text.isprintable():
        return "message is not printable"
    return f"message has {len(text)} characters" if len(text) > MAX_LINE else ""


def place_of(error: BaseException) -> str:
    """The innermost line of Perfuse that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/perfuse/" in f.filename]
    if not frames:
        return "?"
    return f"{frames[-1].filename.rpartition('/perfuse/')[2]}:{frames[-1].lineno}"


@dataclass
class Guard:
    """A target, with what was found and measured.

    Attributes:
        target: The reader.
        inputs: How many inputs it was given.
        max_cpu_s: Longest time of one.
        findings: Inputs by what they did, a few of each.
    """

    target: Target
    inputs: int = 0
    accepted: int = 0
    max_cpu_s: float = 0.0
    findings: dict[str, list[bytes]] = field(default_factory=dict)

    def arm(self) -> None:
        """Have ``TooSlow`` raised, and warnings that users would see raised too."""
        signal.signal(signal.SIGPROF, _too_slow)
        warnings.simplefilter("error")

    def problem(self, data: bytes) -> str:
        """What is wrong with how the reader takes this input; '' when nothing is."""
        start = time.process_time()
        found = ""
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
        try:
            self.target.read(data)
            self.accepted += 1
        except PerfuseError as error:
            found = refuse_line(str(error))
            found = f"{found} at {place_of(error)}" if found else ""
        except TooSlow as error:
            found = f"takes more than {MAX_CPU_S:g} s at {place_of(error)}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # panics of Rust code are no Exception
            found = f"{type(error).__name__} at {place_of(error)}: {' '.join(str(error).split())[:160]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.inputs += 1
        self.max_cpu_s = max(self.max_cpu_s, time.process_time() - start)
        return found

    def check(self, data: bytes) -> None:
        """Run one input and keep what it does wrong."""
        found = self.problem(data)
        if found:
            kept = self.findings.setdefault(found.partition(": ")[0], [])
            if len(kept) < _KEPT_EACH:
                kept.append(found.encode() + b"\n" + data)


def _too_slow(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TooSlow
