"""Every input that fuzzing found once, as small as it goes; each was a traceback, a hang, or memory without bound."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuzz import seeds
from perfuse.config import load_config
from perfuse.data.drug_file import read_drug_file
from perfuse.data.importers import origin
from perfuse.data.importers.human import read_observed
from perfuse.data.importers.nonmem import NonmemOptions, read_nonmem
from perfuse.data.importers.text_rows import read_rows
from perfuse.data.importers.tidy import read_tidy
from perfuse.data.simulation_target import LocalTarget
from perfuse.data.sources import open_source
from perfuse.data.study import read_study
from perfuse.errors import InputError, PerfuseError
from perfuse.evaluation.nca_file import nca_file
from perfuse.evaluation.results import CURVES_NAME, _read_curves
from perfuse.info import describe
from perfuse.pk.topology import get_topology
from perfuse.training.config_file import config_toml
from perfuse.training.logs import truncate_metrics


def refused(read: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        read()
    assert str(error.value).isprintable() and len(str(error.value)) < 2000


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


HUGE = "0x" + "f" * 6000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"seed = {HUGE}", "whole number of 24000 bits"),  # Python writes no number so long: ValueError in the message
        (f"[loss.organ_weight]\nliver = {HUGE}", "24000 bits"),  # written to config.toml the same way
        ('model = "\\u001b[2J"', r"got \\x1b\[2J"),  # would clear the terminal that shows it
        ("a." * 90 + "a = 1", "nested more than 64 deep"),
        ('seed = "' + "a" * 70_000 + '"', "seed"),
        ("[" + "a" * 70_000 + "]", "is no known key"),
    ],
)
def test_configurations(text: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "c.toml", text)
    refused(lambda: config_toml(load_config(path)), says)


def test_odd_names_in_a_configuration_survive_being_written(tmp_path: Path) -> None:
    config = load_config(written(tmp_path / "c.toml", '[loss.organ_weight]\n"a\\u001b\\nb\\u0000" = 2.0\n'))
    assert load_config(written(tmp_path / "again.toml", config_toml(config))) == config


@pytest.mark.parametrize("unit", ["degC", "decibel"])
def test_units_with_an_offset(unit: str, tmp_path: Path) -> None:
    path = written(tmp_path / "o.toml", f'time_unit = "{unit}"')
    refused(lambda: NonmemOptions.from_toml(path), "time_unit is")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('kp_method = "rodgers-rowland"', "kp_method = [1]", "kp_method is unknown"),
        ('[drug]\nname = "midazolam"', '[drug]\nfile = "a\\u0000b"\nname = "x"', "stands alone|no file name"),
        ('name = "midazolam"', 'file = "' + "a" * 5000 + '"', "stands alone|no file name"),
        ("n_doses = 3", "n_doses = 10000\n" + '[[dose]]\namount_mg = 1\ninterval_h = 1\nn_doses = 10000\n' * 10,
         "too many doses"),
        ("fup = 0.03", "fup = 1e-320", "too small or too large"),
    ],
)  # fmt: skip
def test_studies(old: str, new: str, says: str, tmp_path: Path) -> None:
    text = seeds.STUDIES[0]
    assert old in text
    refused(lambda: read_study(written(tmp_path / "s.toml", text.replace(old, new))), says)


@pytest.mark.parametrize("name", ["a\\u0000b", "a" * 5000])
def test_files_that_a_study_names(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "s.toml", f'[drug]\nfile = "{name}"\n[[dose]]\namount_mg = 1\n')
    refused(lambda: read_study(path), "drug.file is no file name")


def test_populations_that_no_memory_holds(tmp_path: Path) -> None:
    text = (
        seeds.STUDIES[1].replace("{ stop = 8, step = 4 }", "{ stop = 100, step = 0.001 }").replace("n = 2", "n = 101")
    )
    refused(lambda: read_study(written(tmp_path / "s.toml", text)), "population.n times the number of times")


@pytest.mark.parametrize(
    ("old", "new"), [("fup = 0.03", "fup = 1e-320"), ("body_weight_kg = 70", "body_weight_kg = 1e-320")]
)
def test_numbers_without_a_reciprocal(old: str, new: str, tmp_path: Path) -> None:
    path = written(tmp_path / "d.toml", seeds.DRUG.replace(old, new))
    refused(lambda: read_drug_file(path), "too small or too large")
    path = written(tmp_path / "h.csv", seeds.HUMAN.replace(",0.3,", ",1e-320,"))
    refused(lambda: read_observed(path, get_topology("circulation")), "too small or too large")


def test_doses_whose_sum_is_infinite(tmp_path: Path) -> None:
    path = written(tmp_path / "n.csv", seeds.NONMEM.replace("1,0,100,", "1,0,1e308,"))
    refused(lambda: read_nonmem(path, NonmemOptions(default_dose="oral")), "too small or too large")
    path = written(tmp_path / "t.csv", seeds.TIDY_HUB.replace(",10,mg", ",1e308,mg"))
    refused(lambda: read_tidy(path), "too small or too large")


def test_column_names(tmp_path: Path) -> None:
    refused(lambda: read_tidy(written(tmp_path / "a.csv", seeds.TIDY_HUB.replace("subject", " drug", 1))), "twice")
    refused(lambda: read_tidy(written(tmp_path / "b.csv", seeds.TIDY_HUB.replace("logp", "_row", 1))), "_row")
    wide = ",".join(f"c{i}" for i in range(20_000)) + "\n1\n"
    refused(lambda: read_tidy(written(tmp_path / "c.csv", wide)), "too many columns")
    same = ",".join(["a"] * 20_000) + "\n1\n"  # counted once for each of them: minutes
    refused(lambda: read_rows(written(tmp_path / "d.csv", same), ()), "appears twice")


@pytest.mark.parametrize(
    ("column", "says"),
    [(pa.array([0, 1], pa.duration("ms")), "no text or number"), (pa.array([[1], [2]]), "no plain values"),
     (pa.array([b"\xff", b"a"]), "plain values|cannot be read")],
)  # fmt: skip
def test_parquet_columns(column: pa.Array, says: str, tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(seeds.parquet(seeds.TIDY_HUB)))
    path = tmp_path / "t.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("logp"), "logp", column), path)
    refused(lambda: read_tidy(path), says)


def test_parquet_that_unpacks_to_any_number_of_rows(tmp_path: Path) -> None:
    n, path = 10**8 + 1, tmp_path / "t.parquet"
    part = pa.table({"drug": pa.nulls(n // 101)})  # nulls take no memory, on disk or here
    with pq.ParquetWriter(path, part.schema) as writer:
        for _ in range(102):
            writer.write_table(part)
    assert path.stat().st_size < 2**20
    refused(lambda: read_tidy(path), "is too large")


@pytest.mark.parametrize("cut", [10, 100, 300, 700])
def test_damaged_parquet_does_not_panic(cut: int, tmp_path: Path) -> None:
    """Polars panicked on some such files, with an exception that is no ``Exception``: Arrow reads them now."""
    data = seeds.parquet(seeds.PREDICTED)
    for value in (0, 0x7F, 0xFF):
        path = written(tmp_path / "p.parquet", data[: -cut - 8] + bytes([value]) + data[-cut - 7 :])
        for read in (lambda p=path: nca_file(p, tmp_path / "out.csv", force=True), lambda p=path: describe(p)):
            with suppress(PerfuseError):
                read()


def test_nca_of_tables_of_odd_types(tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(seeds.parquet(seeds.PREDICTED)))
    path = tmp_path / "p.parquet"
    pq.write_table(table.set_column(0, "curve_id", pa.array([0] * len(table), pa.duration("ms"))), path)
    refused(lambda: nca_file(path, tmp_path / "out.csv"), "curve_id is no text")
    path = written(tmp_path / "p.csv", seeds.PREDICTED.replace(",5.0,", ",1e308,"))
    refused(lambda: nca_file(path, tmp_path / "out.csv"), "larger than any")


def test_metrics_with_a_line_cut_within_a_character(tmp_path: Path) -> None:
    path = written(tmp_path / "metrics.jsonl", seeds.METRICS.encode() + '{"step": "µ'.encode()[:-1])
    truncate_metrics(path, 20)
    assert len(path.read_text().splitlines()) == 2
    path = written(tmp_path / "metrics.jsonl", seeds.METRICS + "[" * 100_000)
    truncate_metrics(path, 20)
    assert len(path.read_text().splitlines()) == 2


def test_notes_of_simulations_that_nest_without_end(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path / "out")
    (target.work / "notes").mkdir(parents=True)
    written(target.work / "notes" / "0.json", "[" * 100_000)
    assert target.note(0) is None
    written(target.work / "request.json", "[" * 100_000)

    def claim() -> None:
        with target.claimed({"n": 1}):
            pass

    refused(claim, "request.json cannot be read")


def member(header: str, data: bytes = b"") -> bytes:
    raw = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data


def archive(path: Path, name: str, content: bytes) -> Path:
    """The origin's layout with one member changed, deflated."""
    with zipfile.ZipFile(io.BytesIO(seeds.origin())) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename == f"{name}.npy" else old.read(info))
    return path


def test_npy_headers_that_the_parser_gives_up_on(tmp_path: Path) -> None:
    deep = "{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 300 + ")" * 300 + "}\n"
    refused(lambda: origin.read_origin_npz(archive(tmp_path / "a.npz", "doses", member(deep))), "broken|readable")


def test_names_beyond_unicode(tmp_path: Path) -> None:
    """Four bytes a character, of which Python refused to make text later on: ``SystemError``."""
    for code in (0x110000, 0xFFFFFFFF, 0xD800):
        names = member("{'descr': '<U1', 'fortran_order': False, 'shape': (2,)}\n", code.to_bytes(4, "little") * 2)
        refused(lambda n=names: origin.read_origin_npz(archive(tmp_path / "a.npz", "compound_ids", n)), "no character")


def test_manifests_of_more_bytes_than_a_float_holds(tmp_path: Path) -> None:
    path = seeds.dataset(tmp_path / "data") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["bytes"] = 10**400
    path.write_text(json.dumps(manifest))
    refused(lambda: open_source(path.parent), r"shards\.0\.bytes is not allowed")


def test_bytes_that_become_eight_times_as_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros of one byte, deflated a thousandfold: 270 kB that would take 2 GB as float64."""
    zeros = member("{'descr': '|i1', 'fortran_order': False, 'shape': (2, 14, 3000000)}\n", bytes(84_000_000))
    path = archive(tmp_path / "bomb.npz", "concentrations", zeros)
    assert path.stat().st_size < 10**6
    refused(lambda: origin.read_origin_npz(path), "unpacks to far more")


def test_stored_evaluations_with_forged_shapes(tmp_path: Path) -> None:
    path = tmp_path / CURVES_NAME
    forged = member("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n", bytes(8))
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("density.npy", forged)
    with pytest.raises(ValueError, match="declares a size that it does not have"):
        _read_curves(path)


def test_shards_that_are_compressed(tmp_path: Path) -> None:
    """770 bytes of zstd unpack to 3.2 MB of zeros, and so on upwards."""
    from hashlib import sha256

    data = seeds.dataset(tmp_path / "data")
    path, manifest = data / "shard-00000.arrow", json.loads((data / "manifest.json").read_text())
    batch = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).get_batch(0)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer,
    ):
        writer.write_batch(batch)
    content = path.read_bytes()
    manifest["shards"][0] |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (data / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: open_source(data), "shard is compressed")


READERS: dict[str, Callable[[Path], object]] = {
    "a.npz": open_source,
    "a.csv": open_source,
    "a.parquet": open_source,
    "a.toml": load_config,
    "b.toml": read_drug_file,
    "c.toml": read_study,
    "b.csv": lambda path: read_rows(path, ()),
    "c.csv": read_nonmem,
    "d.csv": describe,
    "d.safetensors": describe,
}


@pytest.mark.parametrize("name", READERS)
def test_pipes_devices_and_folders_in_place_of_files(name: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to was waited for, and ``/dev/zero`` read until the memory was full."""
    pipe = tmp_path / name
    os.mkfifo(pipe)
    refused(lambda: READERS[name](pipe), "it is a pipe, a device or a socket")
    pipe.unlink()
    pipe.symlink_to("/dev/zero")
    refused(lambda: READERS[name](pipe), "it is a pipe, a device or a socket")


def test_names_of_files_with_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path / "a\nb\x1b[2J.toml", "seed = x")
    refused(lambda: load_config(path), r"a b\\x1b")


def test_numbers_that_are_too_long_to_write() -> None:
    assert "a int too long to show" in str(InputError("a", value=10**5000))
    assert str(PerfuseError("a\nb\x07")) == "a b\\x07"
    assert len(str(InputError("a", "b", allowed="x" * 10**6))) < 2000
