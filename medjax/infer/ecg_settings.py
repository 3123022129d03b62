"""What `python -m medjax.infer` can be told when it judges ECGs."""

from dataclasses import dataclass

from medjax.config import field

LAYOUTS = ("3x4", "6x2", "12x1", "measured")
FORMATS = ("html", "svg", "png", "pdf")


@dataclass(frozen=True)
class EcgModelSettings:
    """The model."""

    name: str | None = field(None, help="folder of a training run on ECGs, or the model folder in it", alias="--model")


@dataclass(frozen=True)
class EcgEngineSettings:
    """How the work is laid out on the devices; results do not depend on it."""

    mesh: str = field(
        "", help="devices, such as data=4; default: every local accelerator along data, or one CPU", alias="--mesh"
    )
    batch_size: int = field(32, help="windows that are computed together", alias="--batch-size")
    compilation_cache: bool = field(True, help="keep compiled programs on disk for the next run")

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}, expected 1 or more.")

    @property
    def to_take_less(self) -> str:
        """What to do about too little memory."""
        return f"lower --batch-size (now {self.batch_size}), or spread the rows with --mesh."


@dataclass(frozen=True)
class EcgPageSettings:
    """The page of each record."""

    layout: str = field(
        "3x4", help="of the trace; measured: a row for each lead there is", alias="--layout", choices=LAYOUTS
    )
    formats: tuple[str, ...] = field(
        ("html",), help="html: the page; the others: its sheet of ECG paper", alias="--format", choices=FORMATS
    )
    explain: str = field(
        "none",
        help="which parts of the trace the answer rests on, with the two checks of the map; both: a page of each",
        alias="--explain",
        choices=("none", "gradients", "rollout", "both"),
    )
    identifiers: bool = field(
        True,
        help="name patient, file and time of recording; false: pages, sheets and predictions.json number the records, "
        "and the terminal alone says which is which",
    )
    speed_mm_s: float = field(25.0, help="of the paper, mm/s", choices=(25.0, 50.0))
    gain_mm_mv: float = field(10.0, help="of the paper, mm/mV", choices=(5.0, 10.0, 20.0))

    @property
    def methods(self) -> tuple[str, ...]:
        """Of infer.explanation."""
        return {"none": (), "both": ("gradients", "rollout")}.get(self.explain, (self.explain,))


@dataclass(frozen=True)
class EcgInferSettings:
    """Everything `python -m medjax.infer` can be told about ECGs."""

    model: EcgModelSettings = EcgModelSettings()
    page: EcgPageSettings = EcgPageSettings()
    engine: EcgEngineSettings = EcgEngineSettings()
    files: tuple[str, ...] = field(
        (), help="ECG files of any format, and folders of them; also the arguments that are no options"
    )
    sampling_rate_hz: float | None = field(None, help="of files that do not say it (.npy, .csv, .mat), Hz")
    unit: str | None = field(None, help="of files that do not say it: mV, uV, V or nV")
    leads: tuple[str, ...] = field((), help="order of the leads in files that do not say it")
    out: str | None = field(
        None, help="folder of predictions.json and pages; default: runs/infer/<model>", alias="--out"
    )
    json: bool = field(False, help="print what predictions.json holds instead of a line a record")
