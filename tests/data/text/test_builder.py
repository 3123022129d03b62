"""Prepared data sets: the same documents as in memory, found again by content, never half of one."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from medjax.data.text import builder
from medjax.data.text.batches import DocumentBatches
from medjax.data.text.builder import prepare
from medjax.data.text.documents import Cut, DocumentList, Report, tokenise
from medjax.data.text.records import read
from medjax.data.text.templates import Template
from medjax.data.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tokenizer(byte_level_folder):
    return load_tokenizer(byte_level_folder)


@pytest.fixture
def data(tmp_path, sentences):
    """A file of 60 pairs about 40 questions, one of them without an answer left, and a text longer than the window."""
    rows = [{"prompt": f"{sentences[i % 10]} {i % 40}?", "response": "答え" * (1 + i % 7) + str(i)} for i in range(60)]
    rows += [{"prompt": "胸痛" * 300, "response": "a"}, {"text": "".join(sentences) * 2}]
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(documents):
    return sorted(
        (documents[i].id, documents[i].tokens.tolist(), documents[i].counted.tolist()) for i in range(len(documents))
    )


def test_stored_documents_are_those_made_in_memory(data, tokenizer, tmp_path):
    template, cut = Template("swallow"), Cut(256)
    prepared = prepare(data, template, tokenizer, cut, cache=tmp_path / "cache")
    report = Report(256)
    expected = DocumentList(tokenise(read(data), template, tokenizer, cut, report))
    assert prepared.held_out is None
    assert prepared.reports == {"train": report}
    assert str(report).count("dropped: no response left (train.jsonl:61)") == 1
    stored = prepared.train
    assert listed(stored) == listed(expected)
    assert [len(stored[i].tokens) for i in range(len(stored))] == stored.lengths.tolist()
    assert [stored[i].counted.sum() for i in range(len(stored))] == stored.counts.tolist()
    assert (stored[0].tokens.dtype, stored[0].counted.dtype) == (np.int32, np.bool_)
    batches = DocumentBatches(stored, window=256, rows=2, seed=0)
    assert [b.tokens.tolist() for b in batches.iterate(0, 5)] == [batches.batch_at(i).tokens.tolist() for i in range(5)]


def test_second_start_reads_no_record(data, tokenizer, tmp_path, monkeypatch):
    options = {"cache": tmp_path / "cache", "fraction": 0.3}
    first = prepare(data, Template("plain"), tokenizer, Cut(64), **options)
    monkeypatch.setattr(builder, "read", lambda *_, **__: pytest.fail("the records were read again"))
    second = prepare(data, Template("plain"), tokenizer, Cut(64), **options)
    assert (second.digest, second.folder, second.reports) == (first.digest, first.folder, first.reports)
    assert listed(second.train) == listed(first.train)
    assert listed(second.held_out) == listed(first.held_out)


def test_held_out_part_shares_no_question(data, tokenizer, tmp_path):
    prepared = prepare(data, Template("plain"), tokenizer, Cut(256), cache=tmp_path, count=10)
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]

    def questions(documents):
        lines = {documents[i].id.split(":")[1].split()[0] for i in range(len(documents))}
        return {rows[int(line) - 1].get("prompt") for line in lines}

    assert not questions(prepared.train) & questions(prepared.held_out)
    assert 10 <= prepared.reports["held_out"].records <= 11
    assert sum(report.records for report in prepared.reports.values()) == 62
    assert prepared.reports["held_out"].documents == len(prepared.held_out)


def test_digest_is_of_everything_that_decides_the_tokens(data, tokenizer, tmp_path, sentencepiece_folder):
    cache = tmp_path / "cache"

    def digest(template="plain", tokenizer=tokenizer, cut=None, path=data, **options):
        return prepare(path, Template(template), tokenizer, cut or Cut(64), cache=cache, **options).digest

    other = data.with_name("other.jsonl")
    other.write_text(data.read_text("utf-8").replace("胸痛は", "腹痛は"), "utf-8")
    digests = [
        digest(),
        digest("alpaca"),
        digest(tokenizer=load_tokenizer(sentencepiece_folder)),
        digest(cut=Cut(65)),
        digest(cut=Cut(64, long="split")),
        digest(cut=Cut(64, counted="all")),
        digest(path=other),
        digest(path=[data, other]),
        digest(fraction=0.5),
    ]
    assert len(set(digests)) == len(digests) == len([p for p in cache.iterdir() if p.is_dir()])
    assert digest() == digests[0]


def test_failure_leaves_nothing_behind(data, tokenizer, tmp_path):
    with data.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 63: got the fields prompt, expected"):
        prepare(data, Template("plain"), tokenizer, Cut(64), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    data.write_text('{"prompt": "長い問題。長い問題。", "response": "a"}\n', encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"got no document for train, expected at least one: 0 documents, .* 1 dropped"
    ):
        prepare(data, Template("plain"), tokenizer, Cut(4), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_killed_preparation_is_made_anew(data, tokenizer, byte_level_folder, tmp_path):
    """A process killed half-way leaves a partial folder, which is not used and is removed by the next."""
    cache = tmp_path / "cache"
    script = f"""
        import time
        from pathlib import Path
        from medjax.data.text import builder
        from medjax.data.text.documents import Cut
        from medjax.data.text.templates import Template
        from medjax.data.text.tokenizer import load_tokenizer
        real = builder._write
        def write(folder, part, documents, report):
            real(folder, part, documents, report)
            Path({str(tmp_path)!r}, "half").touch()
            time.sleep(60)
        builder._write = write
        tokenizer = load_tokenizer(Path({str(byte_level_folder)!r}))
        builder.prepare({str(data)!r}, Template("plain"), tokenizer, Cut(64), cache={str(cache)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "half").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    (left,) = [path for path in cache.iterdir() if path.is_dir()]
    assert f".partial-{os.uname().nodename}-{process.pid}-" in left.name
    assert (left / "train.npz").is_file()
    prepared = prepare(data, Template("plain"), tokenizer, Cut(64), cache=cache)
    assert [path for path in cache.iterdir() if path.is_dir()] == [prepared.folder]
    assert len(prepared.train) == prepared.reports["train"].documents > 60


def test_damaged_folder_is_made_anew_or_refused(data, tokenizer, tmp_path):
    first = prepare(data, Template("plain"), tokenizer, Cut(64), cache=tmp_path)
    whole = listed(first.train)
    (first.folder / "report.json").unlink()
    again = prepare(data, Template("plain"), tokenizer, Cut(64), cache=tmp_path)
    assert (again.folder, listed(again.train)) == (first.folder, whole)
    np.savez(first.folder / "train.npz", lengths=again.train.lengths[1:], counts=again.train.counts[1:])
    with pytest.raises(
        ValueError, match=rf"train: holds {len(whole)} documents, expected {len(whole) - 1}; remove the"
    ):
        prepare(data, Template("plain"), tokenizer, Cut(64), cache=tmp_path)


def test_two_processes_at_once_do_not_meet(data, tokenizer, tmp_path, monkeypatch):
    real = builder._write

    def overtaken(folder, part, documents, report):
        monkeypatch.setattr(builder, "_write", real)
        other.append(prepare(data, Template("plain"), tokenizer, Cut(64), cache=tmp_path / "cache"))
        real(folder, part, documents, report)

    other = []
    monkeypatch.setattr(builder, "_write", overtaken)
    prepared = prepare(data, Template("plain"), tokenizer, Cut(64), cache=tmp_path / "cache")
    assert listed(prepared.train) == listed(other[0].train)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [prepared.folder]


def test_tensorflow_and_jax_are_not_needed(data, byte_level_folder, tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        from medjax.data.text import batches, builder, documents, overlap, packing, records, templates, tokenizer
        tokens = tokenizer.load_tokenizer(Path({str(byte_level_folder)!r}))
        made = builder.prepare({str(data)!r}, templates.Template("plain"), tokens, documents.Cut(64), cache="cache")
        made.train[0], batches.DocumentBatches(made.train, window=64, rows=2, seed=0).batch_at(3)
        print([name for name in ("jax", "tensorflow", "torch") if name in sys.modules])
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
