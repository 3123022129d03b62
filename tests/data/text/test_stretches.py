"""Stretches of training data: together they are the records, whatever the files' form."""

import json
from itertools import pairwise

import pyarrow
import pytest
from pyarrow import parquet

from medjax.data.text.records import read
from medjax.data.text.stretches import size_of, stretches


def joined(pieces):
    """The records, put together from what is fresh in each stretch."""
    texts = {}
    for piece in pieces:
        text = texts.get(piece.where, "")
        assert piece.start + len(piece.text) == len(text) + piece.fresh
        assert (text + piece.text[len(piece.text) - piece.fresh :])[piece.start :] == piece.text
        texts[piece.where] = text + piece.text[len(piece.text) - piece.fresh :]
    return texts


def test_long_texts_come_in_stretches_that_lap_over(tmp_path):
    file = tmp_path / "long.txt"
    text = "".join(f"第{i}章 心臓と肺。\r\n" for i in range(60))
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    pieces = list(stretches([file], lap=20, longest=100))
    assert joined(pieces) == {f"{file}, record 1": text}
    assert max(len(piece.text) for piece in pieces) == 100
    assert all(a.text[-20:] == b.text[:20] for a, b in pairwise(pieces))
    assert pieces[-1].done == len(text.encode())
    assert [piece.record for piece in pieces[:1]] == ["long.txt:1"]


def test_every_form_that_training_reads_and_exams(tmp_path):
    rows = [
        {"id": "c", "messages": [{"role": "user", "content": "胸痛?"}, {"role": "assistant", "content": "心電図"}]},
        {"prompt": "p", "response": "r"},
        {"text": "x" * 250},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    item = {"id": "w1", "question": "Which?", "choices": ["A", "B"], "answer": ["a"], "context": "case"}
    (tmp_path / "exam.jsonl").write_text("\n" + json.dumps(item) + "\n")
    files = [tmp_path / "a.jsonl", tmp_path / "exam.jsonl"]
    pieces = list(stretches(files, lap=10, longest=100))
    a, exam = map(str, files)
    assert joined(pieces) == {
        f"{a}, line 1": "胸痛?\n心電図",
        f"{a}, line 2": "p\nr",
        f"{a}, line 3": "x" * 250,
        f"{exam}, item w1": "case\nWhich?\nA\nB",
    }
    assert [piece.record for piece in pieces] == ["c", "a.jsonl:2", *["a.jsonl:3"] * 3, "w1"]
    assert all(one.done <= two.done <= size_of(files) for one, two in pairwise(pieces))
    assert size_of([tmp_path]) == size_of(files)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.csv", "id,question,a,b,answer,context\nw1,Which?,A,B,a,case\n"),
        ("OWN.CSV", "id,question,a,b,answer,context\nw1,Which?,A,B,a,case\n"),
        (
            "own.json",
            '[ {"id": "w1", "question": "Which?", "choices": ["A", "B"], "answer": ["a"], "context": "case"}]',
        ),
        ("own.jsonl", '{"id": "w1", "question": "Which?", "choices": ["A", "B"], "answer": "a", "context": "case"}'),
        (
            "own.json",
            '{"title": "x",\n "items": [{"id": "w1", "question": "Which?", "choices": ["A", "B"], "answer": "B",'
            ' "context": "case"}]}',
        ),
    ],
)
def test_exams_in_every_form(tmp_path, name, text):
    file = tmp_path / name
    file.write_text("\ufeff" + text, "utf-8")
    assert joined(stretches([file], lap=10)) == {f"{file}, item w1": "case\nWhich?\nA\nB"}


@pytest.mark.parametrize(
    ("name", "text", "record"),
    [
        # a pair with choices beside it, and what only looks like an exam
        ("a.jsonl", '{"question": "Q?", "answer": "because", "choices": ["A", "B"]}', "Q?\nbecause"),
        ("a.json", '[{"question": "Q?", "answer": "b", "choices": ["A", "B"], "id": "1", "from": "x"}]', "Q?\nb"),
        ("a.json", '{"messages": [{"role": "user", "content": "Q?"}]}', "Q?"),
        ("a.json", '[{"text": "Q?"}, {"id": "1", "question": "Q", "choices": ["A", "B"], "answer": "a"}]', "Q?"),
    ],
)
def test_training_data_that_are_no_exam(tmp_path, name, text, record):
    file = tmp_path / name
    file.write_text(text)
    assert next(iter(joined(stretches([file], lap=10)).values())) == record


IGAKUQA = {"problem_id": "113B1", "problem_text": "Q?", "choices": ["A", "B"], "text_only": True, "answer": ["a"]}
NUMBER = {"problem_id": "113B2", "problem_text": "Q?", "choices": [], "answer": ["3"]}
NUMBERED = {"question": "Q?", "options": {"A": "yes", "B": "no"}, "answer": 1, "by": None}
FORMS = [(IGAKUQA, "113B1\nQ?\nA\nB\na"), (NUMBER, "113B2\nQ?\n3"), (NUMBERED, "Q?\nyes\nno")]


@pytest.mark.parametrize(("row", "text"), FORMS)
def test_exams_in_other_forms_are_all_text_in_them(tmp_path, row, text):
    lines, array, table = (tmp_path / f"a.{ending}" for ending in ("jsonl", "json", "parquet"))
    lines.write_text(json.dumps({"text": "before"}) + "\n" + json.dumps(row) + "\n")
    array.write_text(json.dumps([row]))
    parquet.write_table(pyarrow.Table.from_pylist([row]), table)
    assert joined(stretches([lines, array, table], lap=10)) == {
        f"{lines}, line 1": "before",
        **{f"{file}, {place}": text for file, place in ((lines, "line 2"), (array, "record 1"), (table, "record 1"))},
    }
    with pytest.raises(ValueError, match="expected"):  # as training does
        list(read([lines]))


def test_bad_files_are_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"ok \xff")
    with pytest.raises(ValueError, match=r"a\.txt: got bytes that are not UTF-8 \(invalid start byte\)"):
        list(stretches([file], lap=10))
    file.write_text(" \n")
    with pytest.raises(ValueError, match=r"a\.txt: got no records, expected at least one"):
        list(stretches([file], lap=10))
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"choices": [')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: not JSON"):
        list(stretches([rows], lap=10))
    table = tmp_path / "a.csv"
    table.write_text("name,age\nx,3\n")
    said = r"a\.csv, row 1: got the columns name, age, .* \(a \.csv is read as an exam; write other data as"
    with pytest.raises(ValueError, match=said):
        list(stretches([table], lap=10))
    lines = tmp_path / "a.json"
    lines.write_text('{"id": "1", "question": "Q", "choices": ["A", "B"], "answer": "a"}\n' * 2)
    with pytest.raises(
        ValueError, match=r"line 2: got a second object, expected one array.* one object a line a\.jsonl"
    ):
        list(stretches([lines], lap=10))
