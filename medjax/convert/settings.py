"""What `python -m medjax.convert` can be told."""

from dataclasses import dataclass

from medjax.config import field

WEIGHTS = ("hf", "medjax")
ADAPTERS = ("peft", "adapter")


@dataclass(frozen=True)
class ConvertSettings:
    """Everything `python -m medjax.convert` can be told."""

    source: str = field(
        help="the model: Hugging Face folder, medjax folder, .gguf file, registered name or hub id; or an adapter, "
        "which names its model itself; also the first argument"
    )
    to: str = field(
        help="hf: Hugging Face folder; medjax: medjax's own model folder; peft, adapter: the adapter alone, in the "
        "form of Hugging Face PEFT or of medjax",
        choices=(*WEIGHTS, *ADAPTERS),
    )
    out: str = field(help="folder to write, new or empty")
    adapter: str | None = field(
        None, help="adapter folder, training run or PEFT folder of this model; with hf and medjax it is merged"
    )
    revision: str | None = field(None, help="branch, tag or commit of a hub id")
    dtype: str = field(
        "auto",
        help="of the written weights; auto: bfloat16 where the source is, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    quantisation: str | None = field(
        None,
        help="with medjax: keep the weights of all projections quantised",
        alias="--quantise",
        choices=("nf4", "int8", "int4"),
    )
    shard_gb: float = field(5.0, help="with hf: gigabytes (10^9 bytes) of a file, at most")

    def __post_init__(self):
        if not self.source:
            raise ValueError("source: got nothing, expected a model or an adapter; name it first.")
        if not self.out:
            raise ValueError("out: got nothing, expected a folder; name a new one.")
        if self.shard_gb <= 0:
            raise ValueError(f"shard_gb: got {self.shard_gb}, expected more than 0; 5 is usual.")
        if self.quantisation and self.to != "medjax":
            raise ValueError(
                f"quantisation: got {self.quantisation} with --to {self.to}, expected --to medjax, the only form that "
                "keeps it; leave one of them."
            )
        if self.quantisation and self.adapter:
            raise ValueError(
                f"quantisation: got {self.quantisation} and an adapter to merge, expected one of them; merge first, "
                "then convert the merged model with --quantise."
            )
