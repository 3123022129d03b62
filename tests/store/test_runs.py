"""Run folders: what is found again, what is moved aside, what is refused."""

import json
import os

import pytest

from medjax.store.runs import RunFolder, changes

IDENTITY = {"model": "aaa", "seed": 0, "evaluations": {"mini": {"data": "d1", "prompts": "p1"}}, "mesh": ("data", 2)}


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_fresh_folder_holds_its_identity_and_an_empty_journal(tmp_path):
    run = RunFolder.open(tmp_path / "runs" / "eval" / "x", IDENTITY)
    assert (run.resumed, run.note) == (False, "")
    assert _names(run.path) == ["journal", "run.json"]
    assert json.loads((run.path / "run.json").read_text("utf-8")) == {**IDENTITY, "mesh": ["data", 2]}
    assert list(run.journal("mini").read()) == []


def test_the_same_identity_goes_on(tmp_path):
    first = RunFolder.open(tmp_path / "x", IDENTITY)
    first.journal("mini").append([{"i": 0}, {"i": 1, "text": "心"}])
    again = RunFolder.open(tmp_path / "x", {key: IDENTITY[key] for key in reversed(IDENTITY)})
    assert (again.resumed, again.note) == (True, f"{tmp_path / 'x'} holds this run already; going on from there")
    again.journal("mini").append([{"i": 2}])
    assert list(again.journal("mini").read()) == [{"i": 0}, {"i": 1, "text": "心"}, {"i": 2}]
    assert list(again.journal("other").read()) == []


def test_another_identity_moves_the_folder_aside_and_says_what_changed(tmp_path):
    path = tmp_path / "x"
    RunFolder.open(path, IDENTITY).journal("mini").append([{"i": 0}])
    changed = {**IDENTITY, "model": "b" * 64, "evaluations": {"mini": {"data": "d1", "prompts": "p2"}}}
    run = RunFolder.open(path, changed)
    assert not run.resumed
    assert run.note == (
        f"{path} held another run (evaluations.mini.prompts: p1 -> p2; model: aaa -> {'b' * 21}...); "
        f"it was moved to {path}.old1, this one starts anew"
    )
    assert list(run.journal("mini").read()) == []
    assert (tmp_path / "x.old1" / "journal" / "mini.jsonl").read_text() == '{"i": 0}\n'
    assert RunFolder.open(path, IDENTITY).note.endswith("it was moved to " + f"{path}.old2, this one starts anew")
    assert json.loads((tmp_path / "x.old2" / "run.json").read_text())["model"] == "b" * 64


def test_an_unreadable_identity_is_moved_aside(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_bytes(b'{"model": "\xff')
    run = RunFolder.open(tmp_path / "x", {"model": "aaa"})
    assert "held another run (model: absent -> aaa)" in run.note
    assert (tmp_path / "x.old1" / "run.json").read_bytes() == b'{"model": "\xff'


def test_a_foreign_folder_or_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="got a folder with other files, expected a run folder or none; choose another"
    ):
        RunFolder.open(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=r"thesis\.txt: got a file, expected a run folder or none"):
        RunFolder.open(tmp_path / "thesis.txt", IDENTITY)
    assert _names(tmp_path) == ["thesis.txt"]


def test_finished_work_without_an_identity_is_never_taken_over(tmp_path):
    """The identity is written first; a folder with a journal alone was not made by a killed run."""
    (tmp_path / "journal").mkdir()
    with pytest.raises(ValueError, match="other files"):
        RunFolder.open(tmp_path, IDENTITY)


@pytest.mark.parametrize("left", [[], ["run.json.partial"]])
def test_a_run_killed_before_it_had_an_identity_starts_again(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text('{"mod')
    assert not RunFolder.open(tmp_path, IDENTITY).resumed
    assert _names(tmp_path) == ["journal", "run.json"]


@pytest.mark.parametrize("torn", [b"{", b'{"i": 2, "text": "\xe5\xbf', b'{"i": 2}'])
def test_a_torn_last_line_is_cut_off_the_file(tmp_path, torn):
    journal = RunFolder.open(tmp_path / "x", IDENTITY).journal("mini")
    journal.append([{"i": 0}, {"i": 1}])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + torn)
    assert list(journal.read()) == [{"i": 0}, {"i": 1}]
    assert journal.path.read_bytes() == whole
    journal.append([{"i": 2}])
    assert list(journal.read()) == [{"i": 0}, {"i": 1}, {"i": 2}]


def test_text_with_every_kind_of_line_end_comes_back(tmp_path):
    text = "a\nb\r\nc\x0bd\x0ce\x1cf\x85g\u2028h\u2029i\ufffd"
    journal = RunFolder.open(tmp_path / "x", IDENTITY).journal("mini")
    journal.append([{"i": 0, "text": text}, {"i": 1, "x": -0.1, "y": 1.4012984643248171e-45}])
    assert list(journal.read()) == [{"i": 0, "text": text}, {"i": 1, "x": -0.1, "y": 1.4012984643248171e-45}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    journal = RunFolder.open(tmp_path / "x", IDENTITY).journal("mini")
    journal.path.write_text('{"i": 0}\n{"i": \n{"i": 2}\n')
    with pytest.raises(ValueError, match=r"mini\.jsonl, line 2: not JSON \(.*\); delete the file to redo it"):
        list(journal.read())


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = RunFolder.open(tmp_path / "x", IDENTITY)
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
    assert _names(run.path) == ["journal", "results.json", "run.json"]


def test_changes_names_the_path_of_every_difference():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": True}
    new = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "come": "y" * 40}
    assert changes(old, new) == ["b.c: [1, 2] -> [1, 3]", f"come: absent -> {'y' * 21}...", "gone: True -> absent"]
    assert changes(old, old) == []
