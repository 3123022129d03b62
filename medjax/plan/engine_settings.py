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


@dataclass(frozen=True)
class EnginePlanSettings:
    """A job of the engine, and where it is planned."""

    objective: str = field("score", help="what the engine does", alias="--objective", choices=OBJECTIVES)
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    load: LoadSettings = LoadSettings()
    plan: PlanSettings = PlanSettings()

    def __post_init__(self):
        if self.objective == "generate" and self.load.context <= self.load.prefix:
            raise ValueError(
                f"load.prefix: got {self.load.prefix} tokens, expected fewer than load.context={self.load.context}, "
                "which holds the prefix, the rest of a prompt and the answer; lower --prefix or raise --context."
            )
