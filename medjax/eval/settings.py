"""What `python -m medjax.eval` can be told: the tree behind its TOML files and options."""

import math
from dataclasses import dataclass

from medjax.config import field
from medjax.eval.shards import Shard
from medjax.infer.settings import EngineSettings, ModelSettings

PROTOCOLS = ("strict", "cot", "choice-logprob", "kasai", "gestalt")
FEWSHOT = ("fixed", "random", "nearest")


@dataclass(frozen=True)
class TaskSettings:
    """The questions."""

    names: tuple[str, ...] = field(
        ("mini:ja", "mini:en"),
        help="question sets, groups of them, or exam files (.jsonl, .json, .csv, .tsv; docs/exams.md); name:language "
        "chooses ja or en; list: print every set and group with its licence and origin",
        alias="--tasks",
    )
    language: str | None = field(
        None, help="for names without :language; default: the set's own (own exams: by their text)", alias="--language"
    )
    years: tuple[str, ...] = field((), help="only these exams (igakuqa: 2018 to 2022)", alias="--years")
    sections: tuple[str, ...] = field((), help="only these sections (igakuqa: A to F)", alias="--sections")
    categories: tuple[str, ...] = field((), help="only these categories", alias="--categories")
    text_only: bool = field(False, help="leave out items that need an image", alias="--text-only")
    limit: int | None = field(None, help="the first so many items of each set", alias="--limit")
    data_dir: str | None = field(None, help="folder of the question sets; default: MEDJAX_DATA", alias="--data-dir")

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: got {self.limit}, expected 1 or more items.")
        if not self.names:
            raise ValueError("names: got no question set, expected at least one; see --help.")


@dataclass(frozen=True)
class ProtocolSettings:
    """How the questions are put and the answers read (docs/protocols.md)."""

    names: tuple[str, ...] = field(
        (),
        help="how to ask and to score; default: strict, and choice-logprob too for the mini exam",
        alias="--protocol",
        choices=PROTOCOLS,
    )
    num_fewshot: int = field(0, help="worked examples before each question", alias="--num-fewshot")
    fewshot: str | None = field(
        None,
        help="which examples: the authors' or the first of the pool, drawn by seed, or those most similar to the "
        "question; default: the authors' where there are some, else drawn",
        choices=FEWSHOT,
    )
    template: tuple[str, ...] = field(
        (),
        help="files with prompt templates ({{instruction}}, {{input}}) for the question, each graded by itself",
        alias="--template",
    )
    majority: bool = field(False, help="ask every item with all templates and count their most frequent answer")
    rotate: bool = field(False, help="ask under every cyclic shift of the choices; right: right under all of them")
    samples: int = field(1, help="answers drawn for each item, of which the most frequent counts")
    temperature: float = field(0.0, help="of drawing; 0 takes the most probable token")
    top_p: float = field(1.0, help="draw from the most probable tokens that hold this share of the probability")
    think_tokens: int = field(512, help="cot: new tokens of reasoning before an answer is forced")
    continuation: str = field(
        "text", help="choice-logprob: what is scored, each choice's text or its letter", choices=("text", "letter")
    )
    normalise: str = field(
        "sum",
        help="choice-logprob: log-probability as it is, or per token, byte or character",
        choices=("sum", "token", "byte", "character"),
    )
    max_new_tokens: int | None = field(
        None, help="of a generated answer, after its reasoning; default: 32 (gestalt: 256)", alias="--max-new-tokens"
    )

    def __post_init__(self):
        if self.num_fewshot < 0:
            raise ValueError(f"num_fewshot: got {self.num_fewshot}, expected 0 or more.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}, expected 1 or more.")
        if self.samples < 1:
            raise ValueError(f"samples: got {self.samples}, expected 1 or more.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: got {self.temperature}, expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, expected a share above 0 and up to 1.")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: got {self.samples} at temperature 0, where all are the same; set --protocol.temperature, "
                "for instance 0.7."
            )
        if self.think_tokens < 1:
            raise ValueError(f"think_tokens: got {self.think_tokens}, expected 1 or more.")
        if self.majority and len(self.template) < 2:
            raise ValueError(
                f"majority: got {len(self.template)} templates, expected two or more; write --template FILE,FILE,FILE."
            )


@dataclass(frozen=True)
class EvalSettings:
    """Everything `python -m medjax.eval` can be told."""

    model: ModelSettings = ModelSettings()
    task: TaskSettings = TaskSettings()
    protocol: ProtocolSettings = ProtocolSettings()
    engine: EngineSettings = EngineSettings()
    out: str | None = field(None, help="run folder; default: runs/eval/<name>")
    name: str | None = field(None, help="of the run; default: made from model, sets and protocol")
    seed: int = field(0, help="of the choice of examples, of drawn answers, of the bootstrap and of permutations")
    resamples: int = field(
        10000,
        help="bootstrap samples behind 95 % intervals, except those of accuracy, which need none; permutations behind "
        "the test of position bias",
    )
    shard: str | None = field(
        None,
        help="this process's part of a run in several, such as 1/4; auto: as srun, a job array or mpirun says "
        "(docs/shards.md)",
        alias="--shard",
    )
    models: tuple[str, ...] = field(
        (),
        help="several models instead of --model, each as MODEL or MODEL+ADAPTER: a run each, one table, and every "
        "pair compared",
        alias="--models",
    )

    def __post_init__(self):
        for key in ("out", "name"):
            if getattr(self, key) == "":
                raise ValueError(f"{key}: got an empty text, expected a name; write one, or leave the option out.")
        if self.resamples < 1:
            raise ValueError(f"resamples: got {self.resamples}, expected 1 or more.")
        if self.models and (self.shard or self.model.adapter):
            given = f"shard={self.shard}" if self.shard else f"model.adapter={self.model.adapter}"
            raise ValueError(
                f"models: got {given} beside it, expected models alone; write an adapter as MODEL+ADAPTER, and grade "
                "the shards of each model by its own command."
            )
        if self.shard is not None:
            Shard.read(self.shard)
