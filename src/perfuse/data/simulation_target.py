"""Where a simulated dataset goes while it is made: a local folder, or any fsspec URL. Finished shards survive a kill.

Local: shards and their notes lie in ``.NAME.simulating`` beside the dataset, which appears by one rename at the end.
URL: shards are uploaded as they are finished, their notes lie under ``.simulating/``, and the manifest comes last.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfuse.data.manifest import MANIFEST, ShardInfo
from perfuse.data.store import file_sha256, shard_name, write_shard
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.files import write_atomic

FAILURES = "failures.csv"
_REQUEST = "request.json"


def is_url(location: str | Path) -> bool:
    """Whether a location is an fsspec URL (``s3://...``, ``memory://...``) rather than a path."""
    return "://" in str(location)


@dataclass(frozen=True)
class Note:
    """What is known of one finished shard: its file (None: not one curve of it could be solved) and its failures."""

    shard: ShardInfo | None
    failures: list[dict[str, Any]]

    def to_json(self) -> bytes:
        """As stored."""
        shard = None if self.shard is None else self.shard.model_dump(mode="json")
        return json.dumps({"shard": shard, "failures": self.failures}, sort_keys=True).encode()

    @staticmethod
    def from_json(content: bytes) -> Note:
        """Raises ValueError or KeyError for what is no note."""
        data = json.loads(content)
        return Note(None if data["shard"] is None else ShardInfo.model_validate(data["shard"]), list(data["failures"]))


class LocalTarget:
    """A dataset folder on this machine's file system."""

    def __init__(self, out: Path) -> None:
        self.out = Path(out)
        self.work = self.out.parent / f".{self.out.name}.simulating"
        self._data, self._notes, self._lock = self.work / "data", self.work / "notes", self.work / "lock"

    @property
    def place(self) -> str:
        """What the unfinished dataset's folder is called."""
        return str(self.work)

    def begin(self, request: dict[str, Any]) -> None:
        """Claim the place; what an earlier run with the same request left stays.

        Raises:
            InputError: if ``out`` is in use, another request's shards lie there, or another process is at work.
        """
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise InputError("out", "exists already and is not an empty folder", value=str(self.out),
                             hint="choose another name")  # fmt: skip
        self.work.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        stored = self.work / _REQUEST
        if stored.exists():
            if json.loads(stored.read_bytes()) != request:
                self._lock.unlink(missing_ok=True)
                raise InputError("request", "differs from the one whose unfinished shards lie there", where=self.place,
                                 hint="finish that one, or delete the folder")  # fmt: skip
        else:
            write_atomic(stored, json.dumps(request, sort_keys=True).encode())
        self._data.mkdir(exist_ok=True)
        self._notes.mkdir(exist_ok=True)

    def _take_lock(self) -> None:
        mine = f"{socket.gethostname()} {os.getpid()}"
        for _ in range(2):
            try:
                handle = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                host, _, pid = self._lock.read_text(encoding="utf-8").partition(" ")
                if host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid)):
                    self._lock.unlink(missing_ok=True)  # its process was killed
                    continue
                hint = f"wait for it, or delete {self._lock} if it is gone"
                raise InputError("out", "is being simulated by another process", value=f"{host} {pid}".strip(),
                                 where=self.place, hint=hint) from None  # fmt: skip
            with os.fdopen(handle, "w") as file:
                file.write(mine)
            return
        raise PerfuseError(f"{self._lock} cannot be taken")

    def release(self) -> None:
        """Let another process continue."""
        self._lock.unlink(missing_ok=True)

    def note(self, index: int) -> Note | None:
        """What is known of a shard, its content verified; None when it is still to be made."""
        try:
            note = Note.from_json((self._notes / f"{index}.json").read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if note.shard is not None:
            path = self._data / shard_name(index)
            if not path.is_file() or file_sha256(path) != note.shard.sha256:
                return None
        return note

    def put(self, index: int, table: CurveTable | None, failures: list[dict[str, Any]]) -> Note:
        """Store a shard and its note, each whole or not at all."""
        shard = None
        if table is not None:
            name = shard_name(index)
            part = self._data / f".{name}.{os.getpid()}.part"
            shard = write_shard(table, part, name)
            part.replace(self._data / name)
        note = Note(shard, failures)
        write_atomic(self._notes / f"{index}.json", note.to_json())
        return note

    def finish(self, manifest: bytes, failures: bytes | None) -> None:
        """Add manifest and failures, and let the dataset appear."""
        for stray in self._data.glob(".*.part"):
            stray.unlink()
        if failures is not None:
            write_atomic(self._data / FAILURES, failures)
        write_atomic(self._data / MANIFEST, manifest)
        with suppress(FileNotFoundError):
            self.out.rmdir()  # an empty folder is in the way
        os.rename(self._data, self.out)
        shutil.rmtree(self.work, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    with suppress(OSError, IndexError):  # a killed process that nobody has waited for is still listed
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class UrlTarget:
    """A dataset under an fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @property
    def place(self) -> str:
        """What the unfinished dataset's place is called."""
        return f"{self.url}/.simulating"

    def _fs(self) -> tuple[Any, str]:
        from perfuse.data.remote import file_system

        return file_system(self.url)

    def begin(self, request: dict[str, Any]) -> None:
        """Claim the place; what an earlier run with the same request left stays.

        Raises:
            InputError: if there is a dataset already, or another request's shards.
        """
        fs, root = self._fs()
        if fs.exists(f"{root}/{MANIFEST}"):
            raise InputError("out", "holds a dataset already", value=self.url, hint="choose another name")
        path = f"{root}/.simulating/{_REQUEST}"
        content = json.dumps(request, sort_keys=True).encode()
        if fs.exists(path):
            if fs.cat_file(path) != content:
                raise InputError("request", "differs from the one whose unfinished shards lie there", where=self.place,
                                 hint="finish that one, or delete it")  # fmt: skip
        else:
            fs.makedirs(f"{root}/.simulating", exist_ok=True)
            fs.pipe_file(path, content)

    def release(self) -> None:
        """Nothing to release: a URL is not locked."""

    def note(self, index: int) -> Note | None:
        """What is known of a shard, its size checked; None when it is still to be made."""
        fs, root = self._fs()
        try:
            note = Note.from_json(fs.cat_file(f"{root}/.simulating/{index}.json"))
            if note.shard is not None and fs.size(f"{root}/{note.shard.file}") != note.shard.bytes:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return note

    def put(self, index: int, table: CurveTable | None, failures: list[dict[str, Any]]) -> Note:
        """Upload a shard, then its note."""
        fs, root = self._fs()
        shard = None
        if table is not None:
            name = shard_name(index)
            with tempfile.TemporaryDirectory() as folder:
                shard = write_shard(table, Path(folder) / name, name)
                fs.put_file(str(Path(folder) / name), f"{root}/{name}")
        note = Note(shard, failures)
        fs.pipe_file(f"{root}/.simulating/{index}.json", note.to_json())
        return note

    def finish(self, manifest: bytes, failures: bytes | None) -> None:
        """Upload failures, then the manifest; from then on it is a dataset."""
        fs, root = self._fs()
        if failures is not None:
            fs.pipe_file(f"{root}/{FAILURES}", failures)
        fs.pipe_file(f"{root}/{MANIFEST}", manifest)
        fs.rm(f"{root}/.simulating", recursive=True)


Target = LocalTarget | UrlTarget


def target_for(out: str | Path) -> Target:
    """The target that a location names."""
    return UrlTarget(str(out)) if is_url(out) else LocalTarget(Path(out))
