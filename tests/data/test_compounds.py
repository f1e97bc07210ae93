"""When two names mean one compound."""

import pytest

from perfuse.data.compounds import compound_key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("(R)-Warfarin", "warfarin"),
        ("(S)-(-)-Propranolol", "propranolol"),
        ("(±)-Verapamil", "verapamil"),
        ("(+)-X", "x"),
        (" Rifampicin ", "rifampicin"),
        ("(r)-", "(r)-"),
        ("(2s,3s)-y", "(2s,3s)-y"),
        ("T1-0-7", "t1-0-7"),
    ],
)
def test_enantiomers_share_their_racemate(name: str, key: str) -> None:
    assert compound_key(name) == key
