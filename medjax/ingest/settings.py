"""What `python -m medjax.ingest ecg` can be told."""

import re
from dataclasses import dataclass

from medjax.config import field


@dataclass(frozen=True)
class BeamSettings:
    """Reading on more than one machine, by Apache Beam."""

    runner: str | None = field(None, help="DirectRunner, FlinkRunner, SparkRunner, DataflowRunner …; none: no Beam")
    options: tuple[str, ...] = field((), help="of the runner, as --name=value")


@dataclass(frozen=True)
class IngestSettings:
    """Everything `python -m medjax.ingest ecg` can be told."""

    source: str = field(
        help="folder of ECG files, one file, or a CSV file that lists files: column path, and as far as known id, "
        "patient, age, sex, device, time, sampling_rate_hz, unit, leads"
    )
    out: str = field(help="folder to write")
    labels: str | None = field(
        None, help="CSV file of labels: a column id (or path) that names the record, and a column for each label"
    )
    label_columns: tuple[str, ...] = field((), help="labels to take; none named: all columns")
    code_labels: tuple[str, ...] = field(
        (),
        help="labels made of the codes and statements in the files, as lvh=164873001|55827005: 1 where a record has "
        "one of them, 0 where it has others only; --labels goes before",
    )
    processes: int = field(0, help="that read files; 0: one a core")
    limit_s: float = field(60.0, help="seconds that a file may take to read")
    memory_gb: float = field(8.0, help="memory that each of these processes may take; an hour of 12 leads needs 3")
    institution: str = field(
        "",
        help="name of the hospital, where data sets of several are used together: equal patient identifiers of two "
        "institutions are two patients; changes which patients are test patients, so keep it",
    )
    duplicates: str = field(
        "mark",
        help="exact copies of a recording; mark: keep and list them, training refuses them on two sides; drop: keep "
        "the first",
        choices=("mark", "drop"),
    )
    correlation: float = field(0.985, help="from which on two recordings are taken for altered copies of one")
    examples: int = field(3, help="recordings drawn in the report")
    beam: BeamSettings = BeamSettings()

    def __post_init__(self):
        if not self.source:
            raise ValueError("source: got nothing, expected a folder, a file or a list of files; name it.")
        if not self.out:
            raise ValueError("out: got nothing, expected a folder; name a new one.")
        if self.processes < 0:
            raise ValueError(f"processes: got {self.processes}, expected 0 or more; 0 takes one a core.")
        if self.limit_s <= 0:
            raise ValueError(f"limit_s: got {self.limit_s:g}, expected more than 0; 60 is usual.")
        if self.memory_gb < 1:
            raise ValueError(f"memory_gb: got {self.memory_gb:g}, expected 1 or more; 8 is usual.")
        if not re.fullmatch(r"[\w.-]*", self.institution) or len(self.institution) > 100:
            raise ValueError(
                f"institution: got {self.institution!r}, expected letters, digits, _ . or -, at most 100; shorten it."
            )
        if not 0.5 <= self.correlation <= 1:
            raise ValueError(f"correlation: got {self.correlation:g}, expected 0.5 to 1; 0.985 is usual.")
        if self.examples < 0:
            raise ValueError(f"examples: got {self.examples}, expected 0 or more.")
        if self.code_labels:
            from medjax.data.ecg.labels import read_code_labels  # only now: --help must not wait for NumPy

            read_code_labels(self.code_labels)
        if self.label_columns and not self.labels:
            raise ValueError("label_columns: got names without --labels, expected a label file; give --labels.")
        if self.beam.options and not self.beam.runner:
            raise ValueError("beam.options: got options without a runner, expected --beam.runner; give both.")
