"""What `python -m medjax.ingest ecg` can be told."""

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
    processes: int = field(0, help="that read files; 0: one a core")
    limit_s: float = field(60.0, help="seconds that a file may take to read")
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
        if not 0.5 <= self.correlation <= 1:
            raise ValueError(f"correlation: got {self.correlation:g}, expected 0.5 to 1; 0.985 is usual.")
        if self.examples < 0:
            raise ValueError(f"examples: got {self.examples}, expected 0 or more.")
        if self.label_columns and not self.labels:
            raise ValueError("label_columns: got names without --labels, expected a label file; give --labels.")
        if self.beam.options and not self.beam.runner:
            raise ValueError("beam.options: got options without a runner, expected --beam.runner; give both.")
