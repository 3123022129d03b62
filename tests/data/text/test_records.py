"""Reading training records: every form and file kind gives the same records, every fault names its place."""

import json

import pyarrow
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import parquet

from medjax.data.text.records import Conversation, Message, Pair, Passage, find_files, read

ROWS = [
    {
        "id": "q7",
        "messages": [{"role": "user", "content": "胸痛の原因は?"}, {"role": "assistant", "content": "心筋梗塞"}],
    },
    {"messages": [{"role": "system", "content": "答えよ。"}, {"role": "user", "content": "はい"}], "source": "x"},
]
PAIRS = [
    {"prompt": "p", "response": "r"},
    {"prompt": "p", "completion": "r", "id": 3},
    {"question": "p", "answer": "r", "text": "p r"},
    {"instruction": "p", "input": "i", "output": "r"},
    {"instruction": "p", "input": None, "output": "r"},
    {"instruction": "p", "output": "r"},
    {"text": "本文\n二行目"},
]


@pytest.fixture
def write(tmp_path):
    """Write a file of the given name under tmp_path: text, or rows as JSON lines."""

    def file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def test_forms_are_known_by_their_fields(write):
    path = write("a.jsonl", ROWS + PAIRS)

    def at(line):
        return f"{path}, line {line}"

    assert list(read(path)) == [
        Conversation("q7", at(1), (Message("user", "胸痛の原因は?"), Message("assistant", "心筋梗塞"))),
        Conversation("a.jsonl:2", at(2), (Message("system", "答えよ。"), Message("user", "はい"))),
        Pair("a.jsonl:3", at(3), "p", "", "r"),
        Pair("3", at(4), "p", "", "r"),
        Pair("a.jsonl:5", at(5), "p", "", "r"),
        Pair("a.jsonl:6", at(6), "p", "i", "r"),
        Pair("a.jsonl:7", at(7), "p", "", "r"),
        Pair("a.jsonl:8", at(8), "p", "", "r"),
        Passage("a.jsonl:9", at(9), "本文\n二行目"),
    ]
    assert [record.question for record in read(path)][:6] == [
        "胸痛の原因は?",
        "答えよ。\n\nはい",
        *"pppp"[:3],
        "p\n\ni",
    ]


def contents(path, **options):
    return [(type(record), record.question, record.texts) for record in read(path, **options)]


def test_every_file_kind_gives_the_same_records(write, tmp_path):
    rows = [{"id": str(i), "instruction": f"問{i}", "input": "", "output": f"答{i}"} for i in range(600)]
    expected = contents(write("a.jsonl", rows))
    assert len(expected) == 600
    assert contents(write("list.json", json.dumps(rows))) == expected
    assert contents(write("lines.json", rows)) == expected
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet") == expected
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for row in rows:
        writer.write(json.dumps(row).encode())
    writer.close()
    assert contents(tmp_path / "a.array_record") == expected
    messages = [{"messages": row["messages"]} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(messages), tmp_path / "m.parquet")
    assert contents(tmp_path / "m.parquet") == contents(write("m.jsonl", ROWS))


def test_text_files_are_one_record_each(write):
    path = write("b/notes.txt", "\ufeff一行目\n\n三行目\n")
    assert list(read(path)) == [Passage("notes.txt:1", f"{path}, record 1", "一行目\n\n三行目\n")]


def test_folder_stands_for_its_files_in_order(write, tmp_path):
    write("in/b.txt", "b")
    write("in/a.jsonl", [{"text": "a1"}, {"text": "a2"}])
    write("in/below/c.jsonl", [{"text": "c"}])
    write("in/README.md", "not data")
    write("in/.hidden/d.txt", "d")
    assert [record.question for record in read(tmp_path / "in")] == ["a1", "a2", "b", "c"]
    two = [tmp_path / "in/b.txt", tmp_path / "in/a.jsonl"]
    assert [record.question for record in read(two)] == ["b", "a1", "a2"]


def test_folder_of_tensorflow_datasets(tmp_path):
    import tensorflow_datasets as tfds

    class Talks(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
            features = tfds.features.FeaturesDict({"messages": tfds.features.Sequence(turn)})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(ROWS), "test": self._generate_examples(ROWS[:1])}

        def _generate_examples(self, rows):
            yield from ((i, {"messages": row["messages"]}) for i, row in enumerate(rows))

    builder = Talks(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    folder = builder.data_path
    expected = [tuple(m["content"] for m in row["messages"]) for row in ROWS]
    assert [record.texts for record in read(folder)] == expected
    assert [record.texts for record in read(tmp_path)] == expected, "found inside a folder as well"
    assert [record.texts for record in read(folder, split="test")] == expected[:1]
    with pytest.raises(ValueError, match=r"got the split 'dev', expected one of (train, test|test, train); name"):
        list(read(folder, split="dev"))
    with pytest.raises(ValueError, match=r"record 1: got bytes that are not JSON, .* dataset_info\.json"):
        list(read(next(folder.glob("*train*"))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: got no records, expected at least one"),
        ("a.txt", " \n", r"a\.txt: got no records"),
        ("a.json", "[]", r"a\.json: got no records"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: not JSON \(Expecting value, column \d+\)"),
        ("a.json", '[{"text": "a"},\n 3', r"a\.json, line 2: not JSON \(Expecting ',' delimiter\); expected one list"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl, line 1: got bytes that are not UTF-8"),
        ("a.jsonl", "[1]", r"a\.jsonl, line 1: got a JSON list, expected an object with the fields messages; "),
        ("a.json", "[3]", r"a\.json, record 1: got a JSON int"),
        ("a.jsonl", [{"promt": "a", "x": 1}], r"line 1: got the fields promt, x, expected .* mean prompt by promt\?"),
        ("a.jsonl", [{"a": 1}], r"line 1: got the fields a, expected .*; rename the fields\."),
        ("a.jsonl", [{"text": 3}], r"line 1: text: got 3 \(int\), expected text"),
        ("a.jsonl", [{"prompt": "a", "response": None}], r"line 1: response: got nothing, expected text"),
        ("a.jsonl", [{"instruction": "a", "inputs": "", "output": "b"}], r"inputs: unknown field; did you mean input"),
        (
            "a.jsonl",
            [{"prompt": "a", "response": "b", "question": "", "answer": ""}],
            r"got the fields prompt/response and question/answer, expected one pair",
        ),
        ("a.jsonl", [{"messages": []}], r"line 1: messages: got \[\] \(list\), expected a list of at least one"),
        ("a.jsonl", [{"messages": ["a"]}], r"messages: message 1: got 'a' \(str\), expected an object"),
        (
            "a.jsonl",
            [{"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "a"}]}],
            r"line 1: messages: message 2: role: got 'bot' \(str\), expected one of system, user, assistant",
        ),
        ("a.jsonl", [{"messages": [{"role": "user"}]}], r"message 1: content: got nothing, expected text"),
        (
            "a.jsonl",
            [{"messages": [{"role": "user", "content": "a", "weight": 0}]}],
            r"message 1: got the fields weight, expected role and content",
        ),
        ("a.parquet", "PAR", r"a\.parquet: not a Parquet file"),
        ("a.csv", "a", r"a\.csv: got a \.csv file, expected one of \.jsonl, "),
        ("a.array_record", "x" * 70000, r"a\.array_record: not an ArrayRecord file"),
    ],
)
def test_faults_name_file_line_and_field(write, name, content, message):
    with pytest.raises(ValueError, match=message):
        list(read(write(name, content)))


def test_missing_files(write, tmp_path):
    write("train.jsonl", [{"text": "a"}])
    with pytest.raises(
        FileNotFoundError, match=r"trian\.jsonl: no such file or folder, .* did you mean .*/train\.jsonl"
    ):
        find_files(tmp_path / "trian.jsonl")
    with pytest.raises(FileNotFoundError, match="correct the path"):
        find_files(tmp_path / "no" / "such.jsonl")
    with pytest.raises(ValueError, match="got no files"):
        find_files([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: found nothing, expected files ending in \.jsonl"):
        find_files(tmp_path / "empty")
