"""Tokenised documents on disk in the form of tensorflow-datasets: written once, read at random ever after.

    CACHE/<digest>/train/…         ArrayRecord files: tokens, counted, id of each document
                   held_out/…
                   train.npz       lengths and counts of all documents, all that is kept in memory
                   report.json     what was cut and dropped

The digest is that of everything that decides the tokens: the files' content, the tokenizer, the template, the window
and the other options. The same data a second time is found, not made; a changed file is made anew beside it. A folder
gets its name by a rename when it is complete, so one that was interrupted is never used, and processes that prepare the
same data at once do not meet.

Documents keep the order of the data; batches shuffle them (packing). TensorFlow is not needed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from medjax.assets import sha256_file
from medjax.data.examples import write_in_order
from medjax.data.text.documents import Cut, Document, Report, Tally, tokenise
from medjax.data.text.overlap import NOTHING, divide
from medjax.data.text.records import Paths, Record, find_files, read
from medjax.data.text.templates import Template
from medjax.data.text.tokenizer import Tokenizer

_FORMAT = 2  # of the folder; part of the digest
_NAME, _VERSION = "tokenised_text", "1.0.0"
_SHARD = 100_000  # documents of a file
_READ_TOGETHER = 1000  # documents


class StoredDocuments:
    """Documents of a prepared part, read from disk when they are asked for.

    lengths, counts  [documents] int32: tokens, and counted tokens, of each
    """

    def __init__(self, folder: Path, part: str) -> None:
        with np.load(folder / f"{part}.npz", allow_pickle=False) as sizes:
            self.lengths, self.counts = sizes["lengths"], sizes["counts"]
        self._folder = folder
        self._source = _source(folder, part)
        if len(self._source) != len(self.lengths):
            raise ValueError(
                f"{folder / part}: holds {len(self._source)} documents, expected {len(self.lengths)}; remove the "
                f"folder {folder}, it will be made again."
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        return _document(self._source[int(index)])


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    digest            of files, tokenizer, template and options
    train, held_out   documents; held_out is None where nothing was to be held out
    reports           "train" and "held_out" -> what was cut and dropped
    """

    digest: str
    folder: Path
    train: StoredDocuments
    held_out: StoredDocuments | None
    reports: dict[str, Report]


def prepare(
    paths: Paths,
    template: Template,
    tokenizer: Tokenizer,
    cut: Cut,
    *,
    cache: str | Path,
    fraction: float = 0.0,
    count: int = 0,
    split: str = "train",
) -> Prepared:
    """Tokenise files into a folder of the cache, or find the folder made before.

    fraction, count  what is held out, as in `overlap.divide`; neither: nothing
    split            of folders that tensorflow-datasets wrote

    Raises what reading, the template and `divide` raise, and ValueError where no document is left to train on.
    """
    files = find_files(paths)
    content = {
        "format": _FORMAT,
        "files": [[name, sha256] for file in files for name, sha256 in _contents(file)],
        "tokenizer": tokenizer.digest,
        "template": [template.name, template.source],
        "cut": dataclasses.asdict(cut),
        "held_out": [fraction, count],
        "split": split,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = Path(cache) / digest[:32]
    if not (folder / "report.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # its name came by a rename: files are missing since then
        division = divide(read(files, split=split), fraction=fraction, count=count) if fraction or count else NOTHING
        parts = ("train", "held_out") if fraction or count else ("train",)

        def records(part: str) -> Iterator[Record]:
            every = tqdm(read(files, split=split), desc=f"tokenising {part}", unit=" records", disable=None)
            return (record for record in every if division.holds_out(record) == (part == "held_out"))

        with _partial(folder) as partial:
            reports = {}
            for part in parts:
                report = reports[part] = Report(cut.window)
                _write(partial, part, tokenise(records(part), template, tokenizer, cut, report), report)
            rows = {part: dataclasses.asdict(report) for part, report in reports.items()}
            (partial / "report.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return _open(folder, digest)


def _open(folder: Path, digest: str) -> Prepared:
    reports = {part: _report(row) for part, row in json.loads((folder / "report.json").read_text("utf-8")).items()}
    held_out = StoredDocuments(folder, "held_out") if "held_out" in reports else None
    return Prepared(digest, folder, StoredDocuments(folder, "train"), held_out, reports)


def _report(row: dict[str, Any]) -> Report:
    row = row | {name: Tally(**row[name]) for name in ("truncated", "split")}
    return Report(**row | {"dropped": {reason: Tally(**tally) for reason, tally in row["dropped"].items()}})


def _contents(path: Path) -> Iterator[tuple[str, str]]:
    """Name and sha256 of a file, or of each file of a folder. (A record without an id is called by its file's name.)"""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    yield from ((file.name, sha256_file(file)) for file in files)


@contextlib.contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `folder` at the end, and vanishes when anything is raised."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{folder.name}.partial-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{prefix}*"):
        if not _runs(left.name.removeprefix(prefix).split("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=folder.parent))
    try:
        yield partial
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "report.json").is_file():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ValueError:
        return False
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _write(folder: Path, part: str, documents: Iterator[Document], report: Report) -> None:
    def some() -> Iterator[Document]:
        yield from documents
        if not report.documents:
            raise ValueError(
                f"data: got no document for {part}, expected at least one: {report}; see which records were dropped, "
                "choose a larger window, or hold out more or less."
            )

    features = {
        "tokens": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "counted": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
        "id": tfds.features.Text(),
    }
    examples = ({"tokens": each.tokens, "counted": each.counted, "id": each.id} for each in some())
    write_in_order(folder / part / _NAME / _VERSION, part, features, examples, shard_examples=_SHARD)
    source = _source(folder, part)
    lengths, counts = np.zeros((2, len(source)), np.int32)
    for start in range(0, len(source), _READ_TOGETHER):
        for i, row in enumerate(source.__getitems__(range(start, min(start + _READ_TOGETHER, len(source)))), start):
            lengths[i], counts[i] = len(row["tokens"]), row["counted"].sum()
    np.savez(folder / f"{part}.npz", lengths=lengths, counts=counts)


def _source(folder: Path, part: str) -> Any:
    return tfds.builder_from_directory(str(folder / part / _NAME / _VERSION)).as_data_source(part)


def _document(row: dict[str, Any]) -> Document:
    return Document(row["tokens"], row["counted"], row["id"].decode("utf-8"))
