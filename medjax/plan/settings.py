"""What `python -m medjax.plan` can be told: the run that is planned, by its own keys, and where it is to run."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from medjax.config import field, peek
from medjax.train.ecg_settings import EcgTrainSettings, settings_class
from medjax.train.settings import QUANTISATIONS, RunSettings, TrainSettings


@dataclass(frozen=True)
class PlanSettings:
    """The slice that the run is planned for, and what is written."""

    topology: str = field(
        "v5e:4x4",
        help="kind and shape (v5e:4x4, v5p:2x2x4, v6e:4x4, tpu7x:2x2x1), kind and number of chips (v5p-128), "
        "gpu:h100:8 or cpu:8",
        alias="--topology",
    )
    slices: int = field(1, help="of that shape, joined by the data-centre network along mesh axis data")
    search: bool = field(
        False,
        help="try meshes, batches, remat, quantisation and attention in place of those of the run, and write the best",
        alias="--search",
    )
    compile: bool = field(True, help="ask the compiler; false: the analytic model alone, in a second")
    spare_gib: float = field(0.0, help="memory of each chip that must stay free for the run to fit")
    tries: int = field(3, help="search: candidates that are compiled, the most promising first; 0: none")
    margin: float = field(0.15, help="search: share of a chip's memory that candidates must leave by arithmetic alone")
    batches: tuple[int, ...] = field(
        (), help="search: sizes of a step's batch; default: train.batch_size, twice and four times as many"
    )
    quantisations: tuple[str, ...] = field(
        (),
        help="search: how frozen projections may be stored; default: none, int8, nf4",
        choices=("none", *QUANTISATIONS),
    )
    out: str | None = field(
        None, help="search: folder for plan.toml, plan.svg and plan.json; default: runs/plan/<name>-<topology>"
    )
    json: str | None = field(None, help="file for every figure", alias="--json")
    hlo: str | None = field(None, help="file for the compiled program's text; search: that of the best way")

    def __post_init__(self):
        if self.slices < 1:
            raise ValueError(f"slices: got {self.slices}, expected 1 or more.")
        if self.spare_gib < 0:
            raise ValueError(f"spare_gib: got {self.spare_gib}, expected 0 or more.")
        if self.tries < 0:
            raise ValueError(f"tries: got {self.tries}, expected 0 or more.")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin: got {self.margin}, expected 0 or more and below 1; 0.15 is usual.")
        if any(size < 1 for size in self.batches):
            raise ValueError(f"batches: got {min(self.batches)}, expected sizes of 1 or more.")


@dataclass(frozen=True)
class LanguagePlanSettings(TrainSettings):
    """A training run of a language model, and where it is planned."""

    plan: PlanSettings = PlanSettings()


@dataclass(frozen=True)
class EcgPlanSettings(EcgTrainSettings):
    """A training run of an encoder of ECGs, and where it is planned."""

    plan: PlanSettings = PlanSettings()


RunPlanSettings = LanguagePlanSettings | EcgPlanSettings


def plan_class(objective: str | None) -> type:
    """The settings of a plan for an objective of medjax.train. Raises ValueError for another."""
    return EcgPlanSettings if settings_class(objective) is EcgTrainSettings else LanguagePlanSettings


def check_options(plan: PlanSettings, argv: Sequence[str]) -> None:
    """Raise ValueError for options that would have no effect: those of a search without one, and the reverse.

    argv  of the command: a mesh and parts that a search does not keep may stand in CONFIG.toml, but not beside --search
    """
    if plan.hlo and not (plan.compile and (plan.tries or not plan.search)):
        raise ValueError(
            f"plan.hlo: got {plan.hlo} where nothing is compiled, expected plan.compile and, for a search, plan.tries; "
            "leave it out, or let it compile."
        )
    if not plan.search:
        usual = PlanSettings()
        for name in ("tries", "margin", "batches", "quantisations", "out"):
            if (got := getattr(plan, name)) != getattr(usual, name):
                raise ValueError(
                    f"plan.{name}: got {got} without a search, which alone reads it; add --search, or leave it out."
                )
        return
    options = [argument for argument in argv if argument.startswith("-") or not argument.endswith(".toml")]
    for key, *names in (("mesh.shape", "--mesh"), ("train.accumulation",)):
        if got := peek(options, key, *names):
            raise ValueError(
                f"{key}: got {got} with --search, which tries all that there are; leave one of the two out."
            )


def meshs_source(error: Exception, argv: Sequence[str]) -> str:
    """What to add to an error about a mesh that the command did not name: the file does, and what replaces it."""
    options = [argument for argument in argv if argument.startswith("-") or not argument.endswith(".toml")]
    keys = ("mesh.shape", "engine.mesh")
    if not str(error).startswith("mesh:") or any(peek(options, key, "--mesh") for key in keys):
        return ""
    file = next((argument for argument in argv if argument.endswith(".toml")), "")
    for key in keys:
        if file and (got := peek(argv, key)):
            return f' It is {key} = "{got}" of {file}, for another slice; --mesh in the command replaces it.'
    return ""


def run_settings(settings: RunPlanSettings) -> RunSettings:
    """The settings of the run alone, as medjax.train takes them."""
    cls: Any = EcgTrainSettings if isinstance(settings, EcgTrainSettings) else TrainSettings
    return cls(**{key.name: getattr(settings, key.name) for key in fields(cls)})
