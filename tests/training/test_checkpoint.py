from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perfuse.config import MODEL_CONFIGS, RunConfig
from perfuse.data.table import CurveTable
from perfuse.errors import InputError, PerfuseError
from perfuse.models import build_model
from perfuse.pk.topology import get_topology
from perfuse.training import checkpoint as module
from perfuse.training import record
from perfuse.training.checkpoint import find_checkpoint, load_checkpoint, previous_of, save_checkpoint
from perfuse.training.load import check_weights, load_model
from perfuse.training.run import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_table: CurveTable) -> Path:
    config = RunConfig.model_validate(
        {
            "model": {"name": "mlp", "hidden": 4, "layers": 1, "knots": 4},
            "training": {"epochs": 1, "tensorboard": False, "ema_decay": 0.5, "device": "cpu"},
        }
    )
    out = tmp_path_factory.mktemp("finished") / "run"
    train(small_table, config, out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    return text


def edit_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


# -- writing -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was(run: Path) -> None:
    old = load_checkpoint(run / "last", with_optimizer=True)
    save_checkpoint(run / "copy", old.state, old.model, old.optimizer)
    new = load_checkpoint(run / "copy", with_optimizer=True)
    assert new.state == old.state
    for a, b in ((old.model, new.model), (old.optimizer, new.optimizer)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    assert sorted(p.name for p in run.iterdir() if p.name.startswith(".") or "previous" in p.name) == []


def test_nothing_in_a_checkpoint_is_a_pickle(run: Path) -> None:
    for path in run.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_shared_storage_is_saved_whole(run: Path) -> None:
    old = load_checkpoint(run / "last")
    base = torch.arange(6.0)
    save_checkpoint(run / "views", old.state, {"a": base[:3], "b": base[3:], "t": base.view(2, 3).t()}, {})
    new = load_checkpoint(run / "views").model
    assert torch.equal(new["b"], base[3:])
    assert torch.equal(new["t"], base.view(2, 3).t())


@pytest.mark.parametrize("crash_at", range(1, 9))
def test_a_crash_at_any_moment_leaves_a_good_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """The process dies at the n-th touch of the file system: whatever is found must be whole, old or new."""
    old = load_checkpoint(run / "last", with_optimizer=True)
    newer = old.state.model_copy(update={"progress": old.state.progress.model_copy(update={"step": 999})})
    touches = 0

    class PowerCut(BaseException):
        pass

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal touches
            touches += 1
            if touches >= crash_at:
                raise PowerCut
            return function(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_durably", counted(module._write_durably))
        patch.setattr(module, "sync_folder", counted(module.sync_folder))
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with pytest.raises(PowerCut):
            save_checkpoint(run / "last", newer, old.model, old.optimizer)
    found = load_checkpoint(run / "last", with_optimizer=True)
    assert found.state.progress.step in (old.state.progress.step, 999)
    assert all(torch.equal(found.model[k], old.model[k]) for k in old.model)
    save_checkpoint(run / "last", newer, old.model, old.optimizer)  # and the next save works
    assert load_checkpoint(run / "last").state.progress.step == 999
    assert not previous_of(run / "last").exists()


def test_between_the_two_renames_the_previous_one_is_found(run: Path) -> None:
    (run / "last").rename(previous_of(run / "last"))
    assert find_checkpoint(run / "last") == previous_of(run / "last")
    assert load_checkpoint(run / "last").folder == previous_of(run / "last")


def test_a_full_disk_gives_one_line_and_keeps_the_old_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = load_checkpoint(run / "last", with_optimizer=True)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PerfuseError, match="No space left.*saved before is kept .free some") as caught:
            save_checkpoint(run / "last", old.state, old.model, old.optimizer)
    one_line(caught.value)
    assert load_checkpoint(run / "last").state == old.state
    assert not list(run.glob(".*"))


def test_a_read_only_folder_gives_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = load_checkpoint(run / "last", with_optimizer=True)

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so a real read-only folder would not do
        with pytest.raises(PerfuseError, match="cannot save the checkpoint .*Permission denied"):
            save_checkpoint(run / "last", old.state, old.model, old.optimizer)
    assert load_checkpoint(run / "last").state == old.state


def test_a_parent_that_is_a_file_gives_one_line(run: Path) -> None:
    old = load_checkpoint(run / "last")
    with pytest.raises(PerfuseError, match="cannot save the checkpoint"):
        save_checkpoint(run / "config.toml" / "last", old.state, old.model, {})


# -- reading -------------------------------------------------------------------------------------------------------


def refused(folder: Path, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(folder, with_optimizer=True)
    assert words in one_line(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_truncated_missing_or_swapped_tensors_are_refused(run: Path, name: str) -> None:
    path = run / "last" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(run / "last", f"{name} is damaged")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(run / "last", f"{name} is damaged")
    path.unlink()
    refused(run / "last", f"{name} is missing")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x00" * 7, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 10**9) + b"{" * 100,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 63) + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}'[:63] + b"\x00" * 4,
        struct.pack("<Q", 8) + b"\xff" * 8,
    ],
    ids=["empty", "short", "header 2^62", "header 10^9", "list", "huge shape", "no text"],
)  # fmt: skip
def test_forged_safetensors_with_a_matching_hash_are_refused(run: Path, data: bytes) -> None:
    from hashlib import sha256

    (run / "last" / "model.safetensors").write_bytes(data)
    edit_state(run / "last", lambda s: s["files"].update({"model.safetensors": sha256(data).hexdigest()}))
    refused(run / "last", "model.safetensors is no readable safetensors file")


def test_state_that_is_no_json_is_refused(run: Path) -> None:
    for text in (b"", b"{", b"\xff\xfe", b"[1]", b"[" * 50_000, b'{"schema_version": NaN}', b"null"):
        (run / "last" / "state.json").write_bytes(text)
        refused(run / "last", "state.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("data"), "state.json: data"),
        (lambda s: s.update(surprise=1), "state.json: surprise"),
        (lambda s: s["progress"].update(step="7"), "state.json: progress.step"),
        (lambda s: s["progress"].update(step=-1), "state.json: progress.step"),
        (lambda s: s["progress"].update(step=1.5), "state.json: progress.step"),
        (lambda s: s["config"]["model"].update(name="transformer"), "state.json: config.model"),
        (lambda s: s["config"]["training"].update(batch_size=0), "batch_size"),
        (lambda s: s.update(topology=5), "state.json: topology"),
        (lambda s: s.update(files=[]), "state.json: files"),
        (lambda s: s.update(rng={"$exec": "import os"}), "unknown tag"),
        (lambda s: s.pop("schema_version"), "schema_version is missing"),
        (lambda s: s.update(schema_version="1"), "schema_version is missing or no integer"),
        (lambda s: s.update(schema_version=True), "schema_version is missing or no integer"),
        (lambda s: s.update(schema_version=99), "newer than this version of Perfuse (got 99)"),
        (lambda s: s.update(schema_version=0), "too old to be upgraded"),
    ],
)
def test_forged_state_is_refused(run: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    edit_state(run / "last", change)
    refused(run / "last", words)


def test_an_older_schema_is_upgraded_by_its_function(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version 0 that called ``data`` something else, to show the mechanism; 1 follows with the upgrade that is."""

    def from_0(state: dict[str, object]) -> dict[str, object]:
        state["data"] = state.pop("dataset")
        return state

    before = load_checkpoint(run / "last").state
    edit_state(run / "last", lambda s: s.update(schema_version=0, dataset=s.pop("data")))
    monkeypatch.setitem(record.UPGRADES, 0, from_0)
    upgraded = load_checkpoint(run / "last").state
    assert upgraded.run_id == before.run_id  # what is there is kept
    assert upgraded == before


def test_a_folder_replaced_while_it_is_read_is_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = load_checkpoint(run / "last", with_optimizer=True)
    newer = old.state.model_copy(update={"progress": old.state.progress.model_copy(update={"step": 999})})
    original = module._read_tensors
    raced = []

    def race(folder: Path, name: str, state: Any) -> Any:
        if not raced:
            raced.append(True)
            changed = {k: v + 1 for k, v in old.model.items() if v.is_floating_point()}
            save_checkpoint(run / "last", newer, old.model | changed, old.optimizer)
        return original(folder, name, state)

    monkeypatch.setattr(module, "_read_tensors", race)
    assert load_checkpoint(run / "last").state.progress.step == 999


# -- models --------------------------------------------------------------------------------------------------------


def test_load_model_takes_best_then_last_then_the_folder_itself(run: Path) -> None:
    assert load_model(run).folder == run / "best"
    assert load_model(run / "last").folder == run / "last"
    shutil.rmtree(run / "best")
    loaded = load_model(run)
    assert loaded.folder == run / "last"
    assert not any(m.training for m in loaded.model.modules())
    assert loaded.meta.units["concentration"] == "mg/L"
    assert loaded.meta.split.train.n_curves == 16
    assert len(loaded.meta.split.train.compound_ids) == 16
    assert loaded.config.model.name == "mlp"


def test_modules_are_imported_before_anything_is_on_the_meta_device(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants that a module makes while it is imported there would stay without contents."""
    import importlib

    import torch

    seen: list[str] = []

    def spy(name: str) -> object:
        seen.append(torch.get_default_device().type)
        return importlib.import_module(name)

    monkeypatch.setattr("perfuse.models.import_module", spy)
    load_model(run)
    assert seen[0] == "cpu" and "meta" in seen


def test_an_untrained_model_is_refused_but_not_a_fitted_start(run: Path) -> None:
    edit_state(run / "best", lambda s: s["progress"].update(step=0, best_step=0))
    assert load_model(run).folder == run / "best"
    edit_state(run / "best", lambda s: s["progress"].update(best_step=-1))
    with pytest.raises(InputError, match="holds an untrained model.*--resume"):
        load_model(run)


def test_load_model_recovers_an_interrupted_swap(run: Path) -> None:
    for name in ("best", "last"):
        (run / name).rename(previous_of(run / name))
    assert load_model(run).folder == previous_of(run / "best")


def test_paths_without_a_model_are_refused(run: Path, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "absent", "RUN does not exist"),
        (run / "config.toml", "RUN is no folder"),
        (tmp_path, "RUN holds no checkpoint"),
    ):
        with pytest.raises(InputError, match=words):
            load_model(path)
    with pytest.raises(InputError, match="checkpoint was not found"):
        load_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["config"]["model"].update(hidden=5), "does not fit the model"),
        (lambda s: s["config"]["model"].update(layers=3), "is missing: it is of another model"),
        (lambda s: s["config"].update(model={"name": "loglinear-rates"}), "of another"),
        (lambda s: s.update(topology="klein bottle"), "topology is unknown (got klein bottle)"),
        (lambda s: s.update(elimination_names={"$tuple": ["a"]}), "elimination_names differ"),
        (lambda s: s.update(organs={"$tuple": ["blood"]}), "organs differ"),
        (lambda s: s["units"].update(dose="g"), "units differ"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    run: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit_state(run / "best", change)
    with pytest.raises(InputError) as caught:
        load_model(run)
    assert words in one_line(caught.value)


def test_a_forged_configuration_is_refused_before_it_takes_memory(run: Path) -> None:
    """4.5 GB of weights by its configuration, a few kB by its tensors."""
    import resource

    huge = {"hidden": 8192, "layers": 16, "knots": 1000}
    edit_state(run / "best", lambda s: s["config"]["model"].update(huge))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as caught:
        load_model(run)
    assert "of another model" in one_line(caught.value) or "does not fit" in one_line(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("topology", ["hub", "circulation"])
@pytest.mark.parametrize("name", list(MODEL_CONFIGS))
def test_every_model_has_the_same_tensors_without_memory(name: str, topology: str) -> None:
    config, graph = MODEL_CONFIGS[name](), get_topology(topology)
    with torch.device("meta"):
        shadow = build_model(config, graph)
    model = build_model(config, graph)
    assert {t.device.type for t in model.state_dict().values()} == {"cpu"}
    assert all(t.is_meta for t in shadow.state_dict().values())
    check_weights(shadow, model.state_dict(), "here")


def test_an_extra_tensor_is_refused(run: Path) -> None:
    old = load_checkpoint(run / "best")
    save_checkpoint(run / "best", old.state, old.model | {"stowaway": torch.ones(1)}, {})
    with pytest.raises(InputError, match="tensor stowaway is unknown to the model"):
        load_model(run)
