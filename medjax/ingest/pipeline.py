"""Rows for the builder: read by processes of this machine, or by Apache Beam on many.

Both read through `reading.Reader`, so that a file that kills or blocks its reader is refused on a cluster too, and both
give the same examples under the same keys. Refusals are lines of JSON in the folder REFUSED, of one file or of many.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medjax.data.ecg.builder import key_of, write_examples
from medjax.data.ecg.storage import Row
from medjax.ingest.reading import Outcome, Reader, Refusal, read_all
from medjax.ingest.settings import BeamSettings
from medjax.ingest.sources import Source, Sources

REFUSED, LISTED = "refused.parts", "files.jsonl"
PART, BESIDE, STORED = "part", "beside", "stored"  # files in REFUSED


def read_here(
    folder: Path,
    sources: Sources,
    *,
    processes: int,
    limit_s: float,
    memory_gb: float,
    progress: Callable[[int, int], None],
) -> list[Refusal]:
    """Write the examples of all files; returns what was refused, in the order of the files.

    progress  called with files done and files in all

    Raises NothingReadError where no record could be read.
    """
    refused: list[Refusal] = []

    def examples() -> Iterator[tuple[str, Row]]:
        stored = 0
        outcomes = read_all(sources.files, processes=processes, limit_s=limit_s, memory_gb=memory_gb)
        for done, outcome in enumerate(outcomes, 1):
            refused.extend(outcome.refusals)
            stored += len(outcome.rows)
            yield from ((key_of(row), row) for row in outcome.rows)
            progress(done, len(sources.files))
        if not stored:
            raise NothingReadError(len(sources.files), _sorted(refused))

    write_examples(folder, examples)
    return _sorted(refused)


class NothingReadError(ValueError):
    """An ingest without a single record.

    files    that were read;  refused  why, in the order of the files
    """

    def __init__(self, files: int, refused: list[Refusal]) -> None:
        super().__init__(files, refused)
        self.files, self.refused = files, refused

    def __str__(self) -> str:
        first = next(iter(self.refused), Refusal("(none)", "nothing was said"))
        return (
            f"got no record out of {self.files:,} {'file' if self.files == 1 else 'files'}, expected at least one; the "
            f"first, {first.file}: {first.reason}"
        )


def _sorted(refused: list[Refusal]) -> list[Refusal]:
    return sorted(refused, key=lambda refusal: (refusal.file, refusal.record, refusal.reason))


def read_with_beam(
    folder: Path, sources: Sources, beam: BeamSettings, *, limit_s: float, memory_gb: float
) -> list[Refusal]:
    """Write the examples of all files by a Beam pipeline; returns what was refused, in the order of the files.

    Every worker must see the files and the folder under the same paths: the list of files is read by them, since a
    pipeline of a million elements is too large to be sent. Raises ModuleNotFoundError without apache-beam,
    NothingReadError where no record could be read.
    """
    try:
        import apache_beam as apache
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"beam.runner: got {beam.runner} without {error.name}, expected it installed; pip install 'medjax[beam]'."
        ) from error

    class Read(apache.DoFn):
        """Files to their outcomes, by a reader process of each worker."""

        def setup(self) -> None:
            self._reader, self._name = Reader(limit_s, memory_gb=memory_gb), uuid.uuid4().hex

        def process(self, line: str) -> Iterator[tuple[str, Any]]:
            outcome = self._reader.read(Source.from_json(json.loads(line)))
            self._remember(outcome)
            yield from (("row", (key_of(row), row)) for row in outcome.rows)
            yield from (("refused", json.dumps(refusal.to_json())) for refusal in outcome.refusals)

        def _remember(self, outcome: Outcome) -> None:
            """Beside the pipeline: of one that ends in an error, as without a row, nothing else comes back."""
            if outcome.rows:
                (folder / REFUSED / STORED).touch()
            lines = "".join(f"{json.dumps(refusal.to_json())}\n" for refusal in outcome.refusals)
            with (folder / REFUSED / f"{BESIDE}-{self._name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(lines)

        def teardown(self) -> None:
            self._reader.close()

    class Examples(apache.PTransform):
        def expand(self, begin: Any) -> Any:
            files = begin | "list" >> apache.io.ReadFromText(str(folder / LISTED)) | "spread" >> apache.Reshuffle()
            # the second shuffle keeps what was read: whether a slow file is refused must not be decided twice
            outcomes = files | "read" >> apache.ParDo(Read()) | "keep" >> apache.Reshuffle()
            refused = outcomes | "choose refused" >> apache.Filter(lambda pair: pair[0] == "refused")
            lines = refused | "their lines" >> apache.Map(lambda pair: pair[1])
            _ = lines | "write refused" >> apache.io.WriteToText(str(folder / REFUSED / PART), ".jsonl")
            rows = outcomes | "choose rows" >> apache.Filter(lambda pair: pair[0] == "row")
            return rows | "their examples" >> apache.Map(lambda pair: pair[1])

    (folder / REFUSED).mkdir()
    (folder / LISTED).write_text("".join(f"{json.dumps(source.to_json())}\n" for source in sources.files), "utf-8")
    options = PipelineOptions([f"--{option.lstrip('-')}" for option in beam.options])
    try:
        write_examples(folder, Examples, beam_runner=beam.runner, beam_options=options)
    except Exception as error:
        refused = _refused(folder, BESIDE)
        if (folder / REFUSED / STORED).exists() or not refused:
            raise
        raise NothingReadError(len(sources.files), refused) from error
    finally:
        (folder / LISTED).unlink()
    return _refused(folder, PART)


def _refused(folder: Path, name: str) -> list[Refusal]:
    """What the files of a name say."""
    parts = (folder / REFUSED).glob(f"{name}-*")
    lines = [line for part in parts for line in part.read_text("utf-8").splitlines()]
    return _sorted([Refusal(**json.loads(line)) for line in lines])
