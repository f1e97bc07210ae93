"""Freed memory is kept where the C library allows it, and asking does no harm where it does not."""

import ctypes
import platform

import pytest

from perfuse.training.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_glibc_agrees() -> None:
    keep_freed_memory.cache_clear()
    assert keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_freed_memory.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()
