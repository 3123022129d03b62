"""What `python -m medjax.infer` can be told; the model and the engine are declared here for `medjax.eval` too."""

from dataclasses import dataclass

from medjax.config import field


@dataclass(frozen=True)
class ModelSettings:
    """The model."""

    name: str = field(
        "smollm2-135m",
        help="Hugging Face folder, .gguf file, registered name (smollm2-135m, stories260k) or hub id organisation/name",
        alias="--model",
    )
    adapter: str | None = field(
        None,
        help="training run, adapter folder or PEFT folder, for this model; medjax.eval grades base and adapter",
        alias="--adapter",
    )
    revision: str | None = field(None, help="branch, tag or commit of a hub id", alias="--revision")
    dtype: str = field(
        "float32", help="of parameters and computation", alias="--dtype", choices=("float32", "bfloat16")
    )
    quantisation: str | None = field(
        None,
        help="keep the weights of all projections quantised; none: as dtype says",
        alias=("--quantisation", "--quantise"),
        choices=("nf4", "int8", "int4"),
    )
    kv_cache: str | None = field(
        None,
        help="keep keys and values of what is being written in int8, half of bfloat16; none: as dtype says",
        alias="--kv-cache",
        choices=("int8",),
    )
    chat_template: str = field(
        "auto",
        help="auto: the checkpoint's own template if it has one; none: plain text",
        alias="--chat-template",
        choices=("auto", "none"),
    )


@dataclass(frozen=True)
class EngineSettings:
    """How the work is laid out on the devices; results do not depend on it."""

    mesh: str = field(
        "",
        help="devices, such as data=4,tensor=2; default: every local accelerator along data, each with all the "
        "weights, or one CPU",
        alias="--mesh",
    )
    row_tokens: int = field(2048, help="tokens of a packed row, a multiple of 128", alias="--row-tokens")
    batch_size: int = field(64, help="sequences that are generated together", alias="--batch-size")
    backend: str = field("blockwise", help="attention", choices=("blockwise", "reference"))
    compilation_cache: bool = field(True, help="keep compiled programs on disk for the next run")

    def __post_init__(self):
        if self.row_tokens < 128 or self.row_tokens % 128:
            raise ValueError(f"row_tokens: got {self.row_tokens}, expected a multiple of 128.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}, expected 1 or more.")

    @property
    def to_take_less(self) -> str:
        """What to do about too little memory."""
        return (
            f"lower --engine.row_tokens (now {self.row_tokens}) or --batch-size (now {self.batch_size}), take --dtype "
            "bfloat16 or --quantise, or spread the weights with --mesh."
        )


@dataclass(frozen=True)
class InferSettings:
    """Everything `python -m medjax.infer` can be told."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    prompt: str | None = field(None, help="what to answer; also the first argument")
    file: str | None = field(
        None, help="prompts instead: one a line, or a .jsonl file with a prompt or messages a line; - is standard input"
    )
    system: str | None = field(None, help="system text that opens every conversation without one of its own")
    max_new_tokens: int = field(256, help="of an answer; decoding is greedy", alias="--max-new-tokens")
    json: bool = field(False, help="print one JSON object an answer: prompt, text, tokens, why it ended")

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: got {self.max_new_tokens}, expected 1 or more.")
        if self.prompt is not None and self.file is not None:
            raise ValueError("prompt: got a prompt and a file of prompts, expected one of them; drop the other.")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt: got an empty prompt, expected text; write what the model shall answer.")
