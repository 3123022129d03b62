"""What `python -m medjax.eval` can be told: the tree behind its TOML files and options."""

from dataclasses import dataclass

from medjax.config import field

PROTOCOLS = ("strict", "choice-logprob", "kasai", "gestalt")


@dataclass(frozen=True)
class ModelSettings:
    """The model that is graded."""

    name: str = field(
        "smollm2-135m",
        help="Hugging Face folder, .gguf file, registered name (smollm2-135m, stories260k) or hub id organisation/name",
        alias="--model",
    )
    revision: str | None = field(None, help="branch, tag or commit of a hub id", alias="--revision")
    dtype: str = field(
        "float32", help="of parameters and computation", alias="--dtype", choices=("float32", "bfloat16")
    )
    chat_template: str = field(
        "auto",
        help="auto: the checkpoint's own template if it has one; none: plain text",
        alias="--chat-template",
        choices=("auto", "none"),
    )


@dataclass(frozen=True)
class TaskSettings:
    """The questions."""

    names: tuple[str, ...] = field(
        ("mini:ja", "mini:en"),
        help="question sets, or paths of .jsonl exams (schema: docs/exams.md); name:language chooses ja or en",
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
    template: str | None = field(
        None, help="file with a prompt template ({{instruction}}, {{input}}) for the question", alias="--template"
    )
    continuation: str = field(
        "text", help="choice-logprob: what is scored, each choice's text or its letter", choices=("text", "letter")
    )
    normalise: str = field(
        "sum",
        help="choice-logprob: log-probability as it is, or per token, byte or character",
        choices=("sum", "token", "byte", "character"),
    )
    max_new_tokens: int | None = field(
        None, help="of a generated answer; default: 32 (gestalt: 256)", alias="--max-new-tokens"
    )

    def __post_init__(self):
        if self.num_fewshot < 0:
            raise ValueError(f"num_fewshot: got {self.num_fewshot}, expected 0 or more.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}, expected 1 or more.")


@dataclass(frozen=True)
class EngineSettings:
    """How the work is laid out on the devices; scores do not depend on it."""

    mesh: str = field(
        "",
        help="devices, such as data=4,tensor=2; default: every local accelerator along data, each with all the "
        "weights, or one CPU",
        alias="--mesh",
    )
    row_tokens: int = field(2048, help="tokens of a packed row, a multiple of 128")
    batch_size: int = field(64, help="sequences that are generated together", alias="--batch-size")
    backend: str = field("blockwise", help="attention", choices=("blockwise", "reference"))
    compilation_cache: bool = field(True, help="keep compiled programs on disk for the next run")

    def __post_init__(self):
        if self.row_tokens < 128 or self.row_tokens % 128:
            raise ValueError(f"row_tokens: got {self.row_tokens}, expected a multiple of 128.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}, expected 1 or more.")


@dataclass(frozen=True)
class EvalSettings:
    """Everything `python -m medjax.eval` can be told."""

    model: ModelSettings = ModelSettings()
    task: TaskSettings = TaskSettings()
    protocol: ProtocolSettings = ProtocolSettings()
    engine: EngineSettings = EngineSettings()
    out: str | None = field(None, help="run folder; default: runs/eval/<name>")
    name: str | None = field(None, help="of the run; default: made from model, sets and protocol")
    seed: int = field(0, help="of the choice of examples and of the bootstrap")
    resamples: int = field(10000, help="bootstrap samples behind every 95 % interval")

    def __post_init__(self):
        if self.resamples < 1:
            raise ValueError(f"resamples: got {self.resamples}, expected 1 or more.")
