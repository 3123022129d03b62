"""What `python -m medjax.plan` can be told of the engine that medjax.eval and medjax.infer run: scores and answers."""

from dataclasses import dataclass

from medjax.config import field
from medjax.infer.settings import EngineSettings, ModelSettings
from medjax.plan.settings import PlanSettings

OBJECTIVES = ("score", "generate")


@dataclass(frozen=True)
class LoadSettings:
    """What the engine is given to do."""

    context: int = field(4096, help="generate: tokens of the longest sequence, its prefix and new tokens included",
                         alias="--context")  # fmt: skip
    prefix: int = field(0, help="tokens that all sequences begin with, which are run once", alias="--prefix")
    largest: bool = field(
        False, help="find the longest row (score), or the largest batch and the longest context (generate) that fit",
        alias="--largest",
    )  # fmt: skip

    def __post_init__(self):
        if self.prefix < 0:
            raise ValueError(f"prefix: got {self.prefix}, expected 0 or more tokens.")
        if self.context <= self.prefix:
            raise ValueError(
                f"context: got {self.context} tokens, expected more than the {self.prefix} of the prefix; raise it."
            )


@dataclass(frozen=True)
class EnginePlanSettings:
    """A job of the engine, and where it is planned."""

    objective: str = field("score", help="what the engine does", alias="--objective", choices=OBJECTIVES)
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    load: LoadSettings = LoadSettings()
    plan: PlanSettings = PlanSettings()
