"""Where a simulated dataset goes while it is made: a local folder, or any fsspec URL. Finished shards survive a kill.

Local: shards and their notes lie in ``.NAME.simulating`` beside the dataset, which appears by one rename at the end.
URL: shards are uploaded as they are finished, their notes lie under ``.simulating/``, and the manifest comes last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from perfuse.data.locks import take_lock
from perfuse.data.manifest import MANIFEST, ShardInfo
from perfuse.data.remote import file_system, reaching
from perfuse.data.shard_files import file_sha256, shard_bytes, shard_name, sync, write_shard
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.files import making_parents, write_atomic

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
        try:
            data = json.loads(content)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return Note(None if data["shard"] is None else ShardInfo.model_validate(data["shard"]), list(data["failures"]))


def _check_request(stored: bytes, request: dict[str, Any], place: str) -> None:
    """Refuse to continue what another request began."""
    try:
        before = json.loads(stored)
        known = {key: before.get(key) for key in (*before, *request)}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InputError(_REQUEST, "cannot be read", where=place, hint="delete what lies there") from None
    differing = [f"{key} {value} there, {request.get(key)} here" for key, value in known.items()
                 if value != request.get(key)]  # fmt: skip
    if differing:
        raise InputError("request", f"differs from the one whose unfinished shards lie there: {'; '.join(differing)}",
                         where=place, hint="finish that one, or delete what lies there")  # fmt: skip


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

    @contextmanager
    def claimed(self, request: dict[str, Any]) -> Iterator[None]:
        """Have the place for oneself meanwhile; what an earlier run with the same request left stays.

        Raises:
            InputError: if ``out`` is in use, another request's shards lie there, or another process is at work.
        """
        self._refuse_if_used()
        try:
            with making_parents(self._lock):
                lock = self._signed_lock()
        except OSError as error:
            raise PerfuseError(f"{self.place} cannot be written ({error.strerror or error})") from None
        if lock is None:
            holder = self._lock.read_text(encoding="utf-8").strip() or "unnamed"
            raise InputError("out", "is being simulated by another process", value=holder, where=self.place,
                             hint="wait for it")  # fmt: skip
        with lock:
            try:
                self._refuse_if_used()  # whoever held the lock may just have finished
                stored = self.work / _REQUEST
                if stored.exists():
                    _check_request(stored.read_bytes(), request, self.place)
                else:
                    write_atomic(stored, json.dumps(request, sort_keys=True).encode())
                self._data.mkdir(exist_ok=True)
                self._notes.mkdir(exist_ok=True)
                yield
            finally:
                self._lock.unlink(missing_ok=True)

    def _signed_lock(self) -> IO[str] | None:
        """The lock, saying who holds it; None when another does."""
        lock = take_lock(self._lock)
        if lock is not None:
            try:
                lock.truncate(0)
                os.write(lock.fileno(), f"{socket.gethostname()} {os.getpid()}".encode())
            except OSError:
                lock.close()
                self._lock.unlink(missing_ok=True)
                raise
        return lock

    def _refuse_if_used(self) -> None:
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise InputError("out", "exists already and is not an empty folder", value=str(self.out),
                             hint="choose another name")  # fmt: skip

    def noted(self) -> list[int]:
        """Shards that an earlier run left a note of."""
        return sorted(int(path.stem) for path in self._notes.glob("*.json") if path.stem.isdigit())

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
        """Store a shard and its note, each whole or not at all.

        Raises:
            PerfuseError: when the disk refuses; earlier shards stay.
        """
        shard, name = None, shard_name(index)
        part = self._data / f".{name}.{os.getpid()}.part"
        try:
            if table is not None:
                shard = write_shard(table, part, name)
                part.replace(self._data / name)
            note = Note(shard, failures)
            write_atomic(self._notes / f"{index}.json", note.to_json())
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise PerfuseError(f"{self.place} cannot be written ({reason}); finished shards are kept: "
                               "run the same command again to continue") from None  # fmt: skip
        finally:
            part.unlink(missing_ok=True)
        return note

    def give_up(self, failures: bytes) -> str:
        """Leave a table of what failed beside the finished shards; returns its place."""
        write_atomic(self.work / FAILURES, failures)
        return str(self.work / FAILURES)

    def finish(self, manifest: bytes, failures: bytes | None) -> None:
        """Add manifest and failures, and let the dataset appear."""
        for stray in self._data.glob(".*.part"):
            stray.unlink()
        if failures is not None:
            write_atomic(self._data / FAILURES, failures)
        write_atomic(self._data / MANIFEST, manifest)
        sync(self._data)
        with suppress(FileNotFoundError):
            self.out.rmdir()  # an empty folder is in the way
        os.rename(self._data, self.out)
        sync(self.out.parent)
        shutil.rmtree(self.work, ignore_errors=True)


class UrlTarget:
    """A dataset under an fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @property
    def place(self) -> str:
        """What the unfinished dataset's place is called."""
        return f"{self.url}/.simulating"

    @contextmanager
    def claimed(self, request: dict[str, Any]) -> Iterator[None]:
        """Claim the place; what an earlier run with the same request left stays. A URL cannot be locked.

        Raises:
            InputError: if there is a dataset already, or another request's shards.
            PerfuseError: when the place cannot be reached or written.
        """
        fs, root = file_system(self.url)
        path = f"{root}/.simulating/{_REQUEST}"
        with reaching(self.url, "written"):
            fs.invalidate_cache()
            if fs.exists(f"{root}/{MANIFEST}"):
                raise InputError("out", "holds a dataset already", value=self.url, hint="choose another name")
            if fs.exists(path):
                _check_request(fs.cat_file(path), request, self.place)
            else:
                fs.makedirs(f"{root}/.simulating", exist_ok=True)
                fs.pipe_file(path, json.dumps(request, sort_keys=True).encode())
        yield

    def noted(self) -> list[int]:
        """Shards that an earlier run left a note of; one listing, for a far place answers slowly."""
        fs, root = file_system(self.url)
        with reaching(self.url, "read"):
            names = [str(path).rpartition("/")[2] for path in fs.ls(f"{root}/.simulating", detail=False)]
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def note(self, index: int) -> Note | None:
        """What is known of a shard, its size checked; None when it is still to be made."""
        fs, root = file_system(self.url)
        with reaching(self.url, "read"):
            try:
                note = Note.from_json(fs.cat_file(f"{root}/.simulating/{index}.json"))
                if note.shard is not None and fs.size(f"{root}/{note.shard.file}") != note.shard.bytes:
                    return None
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                return None
        return note

    def put(self, index: int, table: CurveTable | None, failures: list[dict[str, Any]]) -> Note:
        """Upload a shard, then its note. From memory: a temporary file would outlive a kill.

        Raises:
            PerfuseError: when the place cannot be written; earlier shards stay.
        """
        fs, root = file_system(self.url)
        shard = None
        with reaching(self.url, "written"):
            if table is not None:
                content, name = shard_bytes(table), shard_name(index)
                digest = hashlib.sha256(content).hexdigest()
                shard = ShardInfo(file=name, rows=len(table), bytes=len(content), sha256=digest)
                fs.pipe_file(f"{root}/{name}", content)
            note = Note(shard, failures)
            fs.pipe_file(f"{root}/.simulating/{index}.json", note.to_json())
        return note

    def give_up(self, failures: bytes) -> str:
        """Leave a table of what failed beside the finished shards; returns its place."""
        fs, root = file_system(self.url)
        with reaching(self.url, "written"):
            fs.pipe_file(f"{root}/.simulating/{FAILURES}", failures)
        return f"{self.place}/{FAILURES}"

    def finish(self, manifest: bytes, failures: bytes | None) -> None:
        """Upload failures, then the manifest; from then on it is a dataset."""
        fs, root = file_system(self.url)
        with reaching(self.url, "written"):
            if failures is not None:
                fs.pipe_file(f"{root}/{FAILURES}", failures)
            fs.pipe_file(f"{root}/{MANIFEST}", manifest)
            fs.rm(f"{root}/.simulating", recursive=True)


Target = LocalTarget | UrlTarget


def target_for(out: str | Path) -> Target:
    """The target that a location names."""
    return UrlTarget(str(out)) if is_url(out) else LocalTarget(Path(out))
