"""Rows for the builder: read by processes of this machine, or by Apache Beam on many.

Both read through `reading.Reader`, so that a file that kills or blocks its reader is refused on a cluster too, and both
give the same examples under the same keys. Refusals are lines of JSON in the folder REFUSED, of one file or of many.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medjax.data.ecg.builder import key_of, write_examples
from medjax.data.ecg.storage import Row
from medjax.ingest.reading import Reader, Refusal, read_all
from medjax.ingest.settings import BeamSettings
from medjax.ingest.sources import Source, Sources

REFUSED = "refused.parts"


def read_here(
    folder: Path, sources: Sources, *, processes: int, limit_s: float, progress: Callable[[int, int], None]
) -> list[Refusal]:
    """Write the examples of all files; returns what was refused, in the order of the files.

    progress  called with files done and files in all

    Raises ValueError where no record could be read.
    """
    refused: list[Refusal] = []

    def examples() -> Iterator[tuple[str, Row]]:
        done = 0
        for outcome in read_all(sources.files, processes=processes, limit_s=limit_s):
            done += 1
            refused.extend(outcome.refusals)
            yield from ((key_of(row), row) for row in outcome.rows)
            progress(done, len(sources.files))
        if len({refusal.file for refusal in refused}) == done and all(not r.record for r in refused):
            raise ValueError(nothing_read(refused))

    write_examples(folder, examples)
    return sorted(refused, key=lambda refusal: (refusal.file, refusal.record))


def nothing_read(refused: list[Refusal]) -> str:
    """The sentence for an ingest without a single record."""
    first = refused[0]
    return (
        f"got no record out of {len(refused):,} files, expected at least one; the first, {first.file}: {first.reason}"
    )


def read_with_beam(folder: Path, sources: Sources, beam: BeamSettings, *, limit_s: float) -> list[Refusal]:
    """Write the examples of all files by a Beam pipeline; returns what was refused, in the order of the files.

    Every worker must see the files and the folder under the same paths. Raises ModuleNotFoundError without apache-beam.
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
            self._reader = Reader(limit_s)

        def process(self, source: Source) -> Iterator[tuple[str, Any]]:
            outcome = self._reader.read(source)
            yield from (("row", (key_of(row), row)) for row in outcome.rows)
            yield from (("refused", json.dumps(refusal.to_json())) for refusal in outcome.refusals)

        def teardown(self) -> None:
            self._reader.close()

    class Examples(apache.PTransform):
        def expand(self, begin: Any) -> Any:
            outcomes = (
                begin | "files" >> apache.Create(sources.files) | apache.Reshuffle() | "read" >> apache.ParDo(Read())
            )
            refused = outcomes | "choose refused" >> apache.Filter(lambda pair: pair[0] == "refused")
            lines = refused | "their lines" >> apache.Map(lambda pair: pair[1])
            _ = lines | "write refused" >> apache.io.WriteToText(str(folder / REFUSED / "part"), ".jsonl")
            rows = outcomes | "choose rows" >> apache.Filter(lambda pair: pair[0] == "row")
            return rows | "their examples" >> apache.Map(lambda pair: pair[1])

    (folder / REFUSED).mkdir()
    options = PipelineOptions([f"--{option.lstrip('-')}" for option in beam.options])
    try:
        write_examples(folder, Examples, beam_runner=beam.runner, beam_options=options)
    except Exception as error:
        if "examples is 0" not in str(error):  # each runner wraps what tensorflow-datasets says in its own error
            raise
        raise ValueError(
            f"got no record out of {len(sources.files):,} files, expected at least one; ingest one of them without "
            "--beam.runner to see why."
        ) from error
    refused = [
        Refusal(**json.loads(line))
        for part in sorted((folder / REFUSED).iterdir())
        for line in part.read_text("utf-8").splitlines()
    ]
    return sorted(refused, key=lambda refusal: (refusal.file, refusal.record))
