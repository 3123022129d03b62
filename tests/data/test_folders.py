"""Folders that are whole or absent."""

import os
import socket

import pytest

from medjax.data.folders import partial_folder, runs


def test_a_folder_appears_when_the_block_ends_well(tmp_path):
    with partial_folder(tmp_path / "deep" / "set") as partial:
        (partial / "a").write_text("1")
        assert not (tmp_path / "deep" / "set").exists()
    assert (tmp_path / "deep" / "set" / "a").read_text() == "1"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "deep" / "set").stat().st_mode == plain.stat().st_mode


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with partial_folder(tmp_path / "set") as partial:
            (partial / "a").write_text("1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed_but_not_what_runs(tmp_path):
    host = socket.gethostname()
    names = [f"set[1].partial-{host}-{number}-x" for number in (2**22 + 1, os.getpid())]
    names += ["set[1].partial-elsewhere-1-x", f"set1.partial-{host}-{2**22 + 1}-x"]
    for name in names:
        (tmp_path / name).mkdir()
    with partial_folder(tmp_path / "set[1]"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["set[1]", *names[1:]])


def test_processes():
    assert runs(str(os.getpid()))
    assert not runs(str(2**22 + 1))
    assert not runs("no number")
