"""What `python -m medjax.eval` can be told when it grades a model of ECGs."""

from dataclasses import dataclass

from medjax.config import field
from medjax.infer.ecg_settings import EcgEngineSettings, EcgModelSettings
from medjax.statistics.bootstrap import RESAMPLES

SPLITS = ("test", "validation", "train", "all")


@dataclass(frozen=True)
class EcgDataSettings:
    """The recordings."""

    folders: tuple[str, ...] = field((), help="folders that medjax.ingest wrote", alias="--data")
    split: str = field(
        "test",
        help="which part, by the rule that the checkpoint records; all: every record, as for another hospital's data",
        alias="--split",
        choices=SPLITS,
    )
    leaks: str = field(
        "refuse",
        help="records whose patient or recording the training has seen: stop, leave them out, or keep them and say so",
        alias="--leaks",
        choices=("refuse", "drop", "allow"),
    )
    limit: int | None = field(None, help="the first so many records of the part", alias="--limit")

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: got {self.limit}, expected 1 or more records.")


@dataclass(frozen=True)
class EcgReportSettings:
    """What is reported besides the usual."""

    prevalences: tuple[float, ...] = field(
        (0.01, 0.02, 0.05, 0.1), help="shares of patients for predictive values", alias="--prevalence"
    )
    subgroups: tuple[str, ...] = field(
        (), help="labels that make subgroups, besides age band, sex, device and source", alias="--subgroups"
    )

    def __post_init__(self):
        if wrong := [share for share in self.prevalences if not 0 < share < 1]:
            raise ValueError(f"prevalences: got {wrong[0]}, expected shares between 0 and 1 such as 0.02.")


@dataclass(frozen=True)
class EcgEvalSettings:
    """Everything `python -m medjax.eval` can be told about a model of ECGs."""

    model: EcgModelSettings = EcgModelSettings()
    data: EcgDataSettings = EcgDataSettings()
    report: EcgReportSettings = EcgReportSettings()
    engine: EcgEngineSettings = EcgEngineSettings()
    out: str | None = field(None, help="run folder; default: runs/eval/<name>")
    name: str | None = field(None, help="of the run; default: made from model, data and split")
    seed: int = field(0, help="of the bootstrap and of the folds of the trivial classifiers")
    resamples: int = field(RESAMPLES, help="resamples of patients behind every 95 % interval")

    def __post_init__(self):
        if self.resamples < 1:
            raise ValueError(f"resamples: got {self.resamples}, expected 1 or more.")
