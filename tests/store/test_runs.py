"""Run folders: what is found again, what is moved aside, what is refused."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medjax.store.runs import RunFolder, changes, named, shortened

IDENTITY = {"model": "aaa", "seed": 0, "evaluations": {"mini": {"data": "d1", "prompts": "p1"}}, "mesh": ("data", 2)}


SHA256 = hashlib.sha256(json.dumps(IDENTITY, sort_keys=True).encode()).hexdigest()
HEADER = f'{{"identity": "{SHA256}"}}\n'


def _open(path, identity=IDENTITY):
    """An opened folder without its lock, as after the process."""
    run = RunFolder.open(path, identity)
    run.close()
    return run


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_fresh_folder_holds_its_identity_and_an_empty_journal(tmp_path):
    run = _open(tmp_path / "runs" / "eval" / "x", IDENTITY)
    assert (run.resumed, run.note) == (False, "")
    assert _names(run.path) == ["journal", "lock", "run.json"]
    assert json.loads((run.path / "run.json").read_text("utf-8")) == {**IDENTITY, "mesh": ["data", 2]}
    assert list(run.journal("mini").read()) == []


def test_the_same_identity_goes_on(tmp_path):
    first = _open(tmp_path / "x", IDENTITY)
    first.journal("mini").append([{"i": 0}, {"i": 1, "text": "心"}])
    again = _open(tmp_path / "x", {key: IDENTITY[key] for key in reversed(IDENTITY)})
    assert (again.resumed, again.note) == (True, f"{tmp_path / 'x'} holds this run already; going on from there")
    again.journal("mini").append([{"i": 2}])
    assert list(again.journal("mini").read()) == [{"i": 0}, {"i": 1, "text": "心"}, {"i": 2}]
    assert list(again.journal("other").read()) == []


def test_another_identity_moves_the_folder_aside_and_says_what_changed(tmp_path):
    path = tmp_path / "x"
    _open(path, IDENTITY).journal("mini").append([{"i": 0}])
    changed = {**IDENTITY, "model": "b" * 64, "evaluations": {"mini": {"data": "d1", "prompts": "p2"}}}
    run = _open(path, changed)
    assert not run.resumed
    assert run.note == (
        f"{path} held another run (evaluations.mini.prompts: p1 -> p2; model: aaa -> {'b' * 21}...); "
        f"it was moved to {path}.old1, this one starts anew"
    )
    assert list(run.journal("mini").read()) == []
    assert (tmp_path / "x.old1" / "journal" / "mini.jsonl").read_text() == HEADER + '{"i": 0}\n'
    assert _open(path, IDENTITY).note.endswith("it was moved to " + f"{path}.old2, this one starts anew")
    assert json.loads((tmp_path / "x.old2" / "run.json").read_text())["model"] == "b" * 64


def test_an_unreadable_identity_is_moved_aside(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_bytes(b'{"model": "\xff')
    run = _open(tmp_path / "x", {"model": "aaa"})
    assert "held another run (model: absent -> aaa)" in run.note
    assert (tmp_path / "x.old1" / "run.json").read_bytes() == b'{"model": "\xff'


def test_a_foreign_folder_or_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="got a folder with other files, expected a run folder or none; choose another"
    ):
        _open(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=r"thesis\.txt: got a file, expected a run folder or none"):
        _open(tmp_path / "thesis.txt", IDENTITY)
    assert _names(tmp_path) == ["thesis.txt"]


def test_finished_work_without_an_identity_is_never_taken_over(tmp_path):
    """The identity is written first; a folder with a journal alone was not made by a killed run."""
    (tmp_path / "journal").mkdir()
    with pytest.raises(ValueError, match="other files"):
        _open(tmp_path, IDENTITY)


@pytest.mark.parametrize("left", [[], ["run.json.partial"], ["lock", "run.json.partial"]])
def test_a_run_killed_before_it_had_an_identity_starts_again(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text('{"mod')
    assert not _open(tmp_path, IDENTITY).resumed
    assert _names(tmp_path) == ["journal", "lock", "run.json"]


@pytest.mark.parametrize("torn", [b"{", b'{"i": 2, "text": "\xe5\xbf', b'{"i": 2}'])
def test_a_torn_last_line_is_cut_off_the_file(tmp_path, torn):
    journal = _open(tmp_path / "x", IDENTITY).journal("mini")
    journal.append([{"i": 0}, {"i": 1}])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + torn)
    assert list(journal.read()) == [{"i": 0}, {"i": 1}]
    assert journal.path.read_bytes() == whole
    journal.append([{"i": 2}])
    assert list(journal.read()) == [{"i": 0}, {"i": 1}, {"i": 2}]


def test_text_with_every_kind_of_line_end_comes_back(tmp_path):
    text = "a\nb\r\nc\x0bd\x0ce\x1cf\x85g\u2028h\u2029i\ufffd"
    journal = _open(tmp_path / "x", IDENTITY).journal("mini")
    journal.append([{"i": 0, "text": text}, {"i": 1, "x": -0.1, "y": 1.4012984643248171e-45}])
    assert list(journal.read()) == [{"i": 0, "text": text}, {"i": 1, "x": -0.1, "y": 1.4012984643248171e-45}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"i": ', r"line 3: not JSON \(.*\)"),
        (b'{"i": 1, "text": "\xe5\xbf"}', "line 3: byte 18 is not UTF-8"),
        (b'{"text": "x"}', "line 3: got no 'i', expected an object with it"),
        (b"[1]", "line 3: got no 'i', expected an object with it"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line, message):
    journal = _open(tmp_path / "x").journal("mini")
    journal.path.write_bytes(HEADER.encode() + b'{"i": 0}\n' + line + b'\n{"i": 2}\n')
    with pytest.raises(ValueError, match=rf"mini\.jsonl, {message}; delete the file to redo its work"):
        list(journal.read())


def test_a_line_without_a_field_that_the_reader_needs_is_named(tmp_path):
    journal = _open(tmp_path / "x").journal("mini")
    journal.append([{"i": 0, "text": "a", "finish": "stop"}, {"i": 1}])
    with pytest.raises(ValueError, match=r"mini\.jsonl, line 3: got no 'text', 'finish', expected"):
        list(journal.read(("i", "text", "finish")))


def test_the_first_line_of_a_journal_is_its_identity(tmp_path):
    journal = _open(tmp_path / "x").journal("mini")
    journal.append([{"i": 0}])
    journal.append([{"i": 1}])
    assert journal.path.read_text() == HEADER + '{"i": 0}\n{"i": 1}\n'
    other = _open(tmp_path / "y", {**IDENTITY, "seed": 1}).journal("mini")
    other.path.write_bytes(journal.path.read_bytes())
    with pytest.raises(
        ValueError, match=rf"mini\.jsonl, line 1: got work of another run \({SHA256[:12]}\), expected \w{{12}}; delete"
    ):
        list(other.read())
    other.path.write_text('{"i": 0}\n')
    with pytest.raises(ValueError, match=r"line 1: got no 'identity', expected an object with it; delete the file"):
        list(other.read())
    other.path.write_text(HEADER[:20])  # killed in the middle of the first line
    assert list(other.read()) == []
    other.append([{"i": 0}])
    assert list(other.read()) == [{"i": 0}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_never_written(tmp_path, value):
    run = _open(tmp_path / "x")
    with pytest.raises(ValueError, match=r"results\.json: Out of range float values .*; expected finite numbers"):
        run.write_json("results.json", {"a": [value]})
    journal = run.journal("mini")
    with pytest.raises(ValueError, match=r"mini\.jsonl: Out of range float values .*; expected finite numbers"):
        journal.append([{"i": 0, "x": value}])
    assert list(journal.read()) == []
    assert not (run.path / "results.json").exists()


# one writer at a time

_HOLD = """
import json, sys, time
from medjax.store.runs import RunFolder
with RunFolder.open(sys.argv[1], json.loads(sys.argv[2])) as run:
    print(run.resumed, flush=True)
    time.sleep(60)
"""


def _hold(path, identity=IDENTITY):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", _HOLD, str(path), json.dumps(identity)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() in ("True\n", "False\n")
    return process


def _end(process):
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()


def test_a_second_process_is_refused_and_changes_nothing(tmp_path):
    pytest.importorskip("fcntl")
    other = _hold(tmp_path / "x")
    try:
        before = {name: (tmp_path / "x" / name).stat().st_mtime_ns for name in _names(tmp_path / "x")}
        message = r"x: another process is writing this run; wait for its end, or choose another --out\."
        for identity in (IDENTITY, {**IDENTITY, "seed": 1}):
            with pytest.raises(ValueError, match=message):
                RunFolder.open(tmp_path / "x", identity)
        with pytest.raises(ValueError, match=message):
            RunFolder.check(tmp_path / "x")
        assert {name: (tmp_path / "x" / name).stat().st_mtime_ns for name in _names(tmp_path / "x")} == before
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
    finally:
        _end(other)


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    _end(_hold(tmp_path / "x"))
    assert (tmp_path / "x" / "lock").is_file()
    RunFolder.check(tmp_path / "x")
    assert _open(tmp_path / "x").resumed


def test_the_lock_is_of_the_new_folder_when_the_old_one_was_moved_aside(tmp_path):
    pytest.importorskip("fcntl")
    _open(tmp_path / "x", {**IDENTITY, "seed": 1})
    other = _hold(tmp_path / "x")
    try:
        RunFolder.check(tmp_path / "x.old1")
        with pytest.raises(ValueError, match="another process is writing"):
            RunFolder.check(tmp_path / "x")
    finally:
        _end(other)


def test_check_makes_nothing(tmp_path):
    RunFolder.check(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: got a file, expected a run folder or none"):
        RunFolder.check(tmp_path / "file" / "deeper")
    assert _names(tmp_path) == ["file"]


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    _open(tmp_path / "run")
    before = _names(tmp_path)
    monkeypatch.setattr("medjax.store.runs.os.access", lambda path, mode: False)  # for root everything can be written
    for path, nearest in ((tmp_path / "a" / "b", tmp_path), (tmp_path / "run", tmp_path / "run")):
        with pytest.raises(ValueError) as error:
            RunFolder.check(path)
        assert str(error.value) == (
            f"{path}: got a place in {nearest}, where this process may not write, expected a folder where it may; "
            "choose another --out."
        )
    assert _names(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    def mkdir(self, **_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("medjax.store.runs.Path.mkdir", mkdir)
    with pytest.raises(ValueError, match=r"x: cannot be made \(Read-only file system\), expected a place"):
        RunFolder.open(tmp_path / "x", IDENTITY)


def test_what_differs_is_told_in_words_where_somebody_knows_them(tmp_path):
    path = tmp_path / "x"
    _open(path, {"model": "a", "seed": 0})
    other = {"model": "b", "seed": 1}
    with pytest.raises(ValueError, match=r"x: got another run \(A -> B; C; D; E; 2 more\), expected the one"):
        RunFolder.open(path, other, replace=False, told=lambda old, new: ["A -> B", *"CDEFG"])
    note = RunFolder.open(path, other, told=lambda old, new: [f"{old['seed']} to {new['seed']}"]).note
    assert note.startswith(f"{path} held another run (0 to 1); it was moved")


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert named(".") == tmp_path
    assert named("a/..") == tmp_path
    assert named("runs/x") == Path("runs/x")
    assert named("~/x") == tmp_path / "home" / "x"
    assert shortened("a" * 120) == "a" * 120
    digest = hashlib.sha256(("a" * 121).encode()).hexdigest()[:8]
    assert shortened("a" * 121) == f"{'a' * 111}-{digest}"
    assert shortened("x" + "心" * 70).startswith("x" + "心" * 36 + "-")  # 36 of 3 bytes fit into 110
    assert shortened("心" * 70) != shortened("心" * 69 + "肺")


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = _open(tmp_path / "x", IDENTITY)
    run.write_json("results.json", {"a": "心", "b": [1]})
    before = '{\n  "a": "心",\n  "b": [\n    1\n  ]\n}\n'
    assert (run.path / "results.json").read_text("utf-8") == before

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_text("results.json", "half")
    assert (run.path / "results.json").read_text("utf-8") == before
    monkeypatch.undo()
    run.write_text("results.json", "new\n")
    assert (run.path / "results.json").read_text("utf-8") == "new\n"
    assert _names(run.path) == ["journal", "lock", "results.json", "run.json"]


def test_changes_names_the_path_of_every_difference():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": True}
    new = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "come": "y" * 40}
    assert changes(old, new) == ["b.c: [1, 2] -> [1, 3]", f"come: absent -> {'y' * 21}...", "gone: True -> absent"]
    assert changes(old, old) == []
    paths = [f"/runs/eval/{name}" for name in ("first_of_two", "second_of_two")]
    assert changes({"compare": paths}, {"compare": paths[:1]}) == [f"compare: {', '.join(paths)} -> {paths[0]}"]
    assert changes({"a": "/" * 90}, {"a": []}) == [f"a: {'/' * 77}... -> []"]
