"""What `python -m medjax.train` can be told: the tree behind its TOML files and options."""

from dataclasses import dataclass
from typing import Protocol

from medjax.config import field
from medjax.parallel.distributed import DistributedSettings

QUANTISATIONS = ("nf4", "int8", "int4")
REMAT = ("none", "dots", "attention", "full", "offload")
SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "adafactor")
_DISTRIBUTED = DistributedSettings()


@dataclass(frozen=True)
class ModelSettings:
    """The model that is adapted."""

    name: str = field(
        "smollm2-135m",
        help="Hugging Face or medjax folder, .gguf file, registered name, or hub id organisation/name",
        alias="--model",
    )
    revision: str | None = field(None, help="branch, tag or commit of a hub id", alias="--revision")
    dtype: str = field(
        "float32",
        help="of computation and of frozen weights; trained weights, optimiser and loss are float32 always",
        alias="--dtype",
        choices=("float32", "bfloat16"),
    )
    quantisation: str | None = field(
        None,
        help="how frozen projections are stored (QLoRA: nf4)",
        alias=("--quantise", "--quantisation"),
        choices=QUANTISATIONS,
    )
    backend: str = field(
        "auto",
        help="attention; auto: splash on TPU, else blockwise; cudnn: GPU, bfloat16 and data.packing=false",
        choices=("auto", "splash", "cudnn", "blockwise", "reference"),
    )
    context: str = field(
        "auto",
        help="attention of rows split by the mesh axis sequence: all-to-all over heads, all-gather of keys and values, "
        "or keys and values in a ring; auto: heads where there are enough of them, else ring",
        choices=("auto", "heads", "gather", "ring"),
    )


@dataclass(frozen=True)
class LoraSettings:
    """The low-rank adapters; unused when nothing of `lora` is trained."""

    rank: int = field(16, help="of every adapter")
    alpha: float = field(32.0, help="an adapter's output is scaled by alpha / rank")
    targets: tuple[str, ...] = field(
        ("query", "key", "value", "out", "gate", "up", "down"),
        help="projections with an adapter; query_key_value is GPT-NeoX's fused one",
        choices=("query", "key", "value", "query_key_value", "out", "gate", "up", "down"),
    )
    dropout: float = field(0.0, help="share of an adapter's inputs dropped in training")
    rank_stabilised: bool = field(False, help="scale by alpha / sqrt(rank)")


@dataclass(frozen=True)
class DataSettings:
    """The documents that are learned, and those held out."""

    files: tuple[str, ...] = field(
        (),
        help="JSONL, JSON, Parquet, ArrayRecord or text files, folders of them, or set:train for the training part of "
        "an exam set (pubmedqa:train)",
        alias="--data",
    )
    held_out: tuple[str, ...] = field((), help="documents for the held-out loss; default: held_out_count of `files`")
    held_out_count: int = field(50, help="documents taken out of `files` when held_out names none; 0: none")
    template: str = field(
        "auto",
        help="how a record becomes text; auto: the checkpoint's chat template if it has one, else plain",
        choices=("auto", "chat", "plain", "alpaca", "jallm", "swallow"),
    )
    explanations: bool = field(True, help="exam sets: the answer is followed by its explanation, where there is one")
    counted: str = field(
        "responses", help="which tokens the loss counts; plain text counts all", choices=("responses", "all")
    )
    window: int = field(512, help="tokens of a row, a multiple of 128", alias="--window")
    too_long: str = field(
        "auto",
        help="documents beyond the window; auto: plain text is split, the rest truncated",
        choices=("auto", "truncate", "split", "drop"),
    )
    packing: bool = field(True, help="several documents a row; false: one a row, padded")
    exams: tuple[str, ...] = field(
        ("auto",),
        help="question sets whose items must not occur in the data; auto: all sets that are at hand; none: no check",
    )
    data_dir: str | None = field(None, help="folder of the question sets; default: MEDJAX_DATA", alias="--data-dir")

    def __post_init__(self):
        if self.window < 128 or self.window % 128:
            raise ValueError(f"window: got {self.window}, expected a multiple of 128; 512 to 4096 are usual.")
        if self.held_out_count < 0:
            raise ValueError(f"held_out_count: got {self.held_out_count}, expected 0 or more.")


@dataclass(frozen=True)
class StepsSettings:
    """Length, batch, numerics."""

    steps: int | None = field(None, help="optimiser steps; default: from epochs", alias="--steps")
    epochs: float = field(1.0, help="passes over the data, when steps is not given", alias="--epochs")
    batch_size: int = field(8, help="rows of an optimiser step, all devices together", alias="--batch-size")
    accumulation: int = field(1, help="parts that a batch is computed in, one after another")
    seed: int = field(0, help="of data order, new parameters and everything drawn", alias="--seed")
    remat: str = field(
        "dots",
        help="what the backward pass may reuse of a layer, from much memory to little: all, projections and attention, "
        "attention, its input alone; offload: as attention, but kept in the host's memory (TPU)",
        choices=REMAT,
    )
    on_bad_step: str = field(
        "skip",
        help="loss or gradient not finite, or a spike: leave the step's update out, or stop the run",
        choices=("skip", "stop"),
    )
    spike: float = field(0.0, help="a loss above so many times its running mean is a spike; 0: never")
    most_bad_steps: int = field(20, help="the run stops after so many skipped steps in a row")

    def __post_init__(self):
        for name in ("batch_size", "accumulation", "most_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more.")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected 1 or more.")
        if self.epochs <= 0:
            raise ValueError(f"epochs: got {self.epochs}, expected more than 0; 0.5 is half a pass.")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation: got {self.accumulation} for batch_size {self.batch_size}, expected a divisor of it; "
                "change one of the two."
            )
        if self.spike and self.spike <= 1:
            raise ValueError(f"spike: got {self.spike}, expected 0 (off) or more than 1; 3 is usual.")


@dataclass(frozen=True)
class TrainingSettings(StepsSettings):
    """What is trained, length, batch, numerics."""

    trainable: tuple[str, ...] = field(
        ("lora",),
        help="what is trained: lora, full, head, or patterns of parameter paths such as params/layers/*norm*",
        alias="--trainable",
    )
    z_loss: float = field(0.0, help="weight of logsumexp^2 in the loss; 1e-4 keeps logits near 0")

    def __post_init__(self):
        super().__post_init__()
        if not self.trainable:
            raise ValueError("trainable: got nothing, expected lora, full, head or patterns; see --help.")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimiser and its schedule."""

    name: str = field("adamw", help="adamw or adafactor (second moments by rows and columns)", choices=OPTIMIZERS)
    learning_rate: float = field(2e-4, help="at its highest", alias="--learning-rate")
    schedule: str = field("cosine", help="from the highest rate on", choices=SCHEDULES)
    warmup: float = field(0.03, help="linear rise from 0: steps, or below 1 a share of all steps")
    final: float = field(0.0, help="rate at the end, as a share of the highest")
    weight_decay: float = field(0.0, help="of matrices; norms and biases have none")
    beta1: float = field(0.9, help="adamw")
    beta2: float = field(0.999, help="adamw")
    eps: float = field(1e-8, help="adamw")
    clip: float = field(1.0, help="largest global norm of the gradient; 0: no limit")
    moment_dtype: str = field("float32", help="adamw's first moment", choices=("float32", "bfloat16"))

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate: got {self.learning_rate}, expected more than 0; 1e-5 to 1e-3 are usual.")
        for name in ("warmup", "final", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more.")


@dataclass(frozen=True)
class MeshSettings:
    """Devices and who holds what."""

    shape: str = field("", help="such as data=2,fsdp=4,tensor=2; default: all devices along fsdp", alias="--mesh")
    rules: str = field("default", help="sharding preset", choices=("default", "replicated"))


@dataclass(frozen=True)
class CheckpointSettings:
    """What is kept to go on from."""

    every: int = field(100, help="steps between checkpoints; the last step has one always")
    keep_last: int = field(2, help="newest checkpoints that are kept")
    keep_best: int = field(1, help="checkpoints of lowest held-out loss that are kept besides")

    def __post_init__(self):
        if self.every < 1 or self.keep_last < 1 or self.keep_best < 0:
            raise ValueError(
                f"every: got every={self.every}, keep_last={self.keep_last}, keep_best={self.keep_best}, "
                "expected 1 or more, 1 or more, 0 or more."
            )


@dataclass(frozen=True)
class LogSettings:
    """What is told while it runs."""

    every: int = field(10, help="steps between lines of metrics.jsonl")
    held_out_every: int = field(100, help="steps between held-out losses; start and end have one always")
    sinks: tuple[str, ...] = field(
        ("tensorboard",), help="besides metrics.jsonl", choices=("tensorboard", "wandb", "mlflow")
    )

    def __post_init__(self):
        if self.every < 1 or self.held_out_every < 1:
            raise ValueError(f"every: got {self.every} and held_out_every {self.held_out_every}, expected 1 or more.")


class RunSettings(Protocol):
    """What the settings of every run have, whatever it trains."""

    @property
    def train(self) -> StepsSettings: ...
    @property
    def optimizer(self) -> OptimizerSettings: ...
    @property
    def mesh(self) -> MeshSettings: ...
    @property
    def distributed(self) -> DistributedSettings: ...
    @property
    def checkpoint(self) -> CheckpointSettings: ...
    @property
    def log(self) -> LogSettings: ...
    @property
    def compilation_cache(self) -> bool: ...
    @property
    def out(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...


@dataclass(frozen=True)
class TrainSettings:
    """Everything that training a language model can be told."""

    objective: str = field(
        "language", help="the other objectives (mae, classify, regress: ECGs) have other keys", choices=("language",)
    )
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    data: DataSettings = DataSettings()
    train: TrainingSettings = TrainingSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    mesh: MeshSettings = MeshSettings()
    distributed: DistributedSettings = _DISTRIBUTED
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    compilation_cache: bool = field(True, help="keep compiled programs on disk for the next run")
    out: str | None = field(None, help="run folder; default: runs/train/<name>", alias="--out")
    name: str | None = field(None, help="of the run; default: made from model and data")
