"""The page "scaling on paper": what grows with parameters, sequence, chips and data, as tables that formulas fill.

python benchmarks/scaling_paper.py                                     print the page as Markdown
python benchmarks/scaling_paper.py --figure docs/scaling_fsdp.svg      and draw compute against gathers

`sections()` gives the page to a program. The numbers are those of scaling_arithmetic.py; nothing is run.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import jax
import scaling_arithmetic as paper
from scaling_arithmetic import FULL, LORA_BF16, LORA_NF4, WAYS, model
from scaling_figure import figure

from medjax.parallel.chips import GIB, chip
from medjax.parallel.topology import topology

FIGURE = "scaling_fsdp.svg"
MFU = 0.4
_MFU_TEXT = f"{100 * MFU:.0f} %"
NOTE = "*By arithmetic; nothing was run.*"
_LENGTH = 2048
_LENGTHS = (2048, 4096, 8192, 32_768, 131_072)
_CHIPS = ("v4", "v5e", "v5p", "v6e", "tpu7x", "h100")
_HOLDING = ("v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200")
_FSDP = ("v4-64", "v5e-16", "v5e-256", "v5p-16", "v5p-128", "v6e-16", "v6e-256", "tpu7x-64", "gpu:a100:8", "gpu:h100:8")
_RUNS = ("v5e-16", "v6e-16", "v5p-128", "gpu:h100:8")
_TASKS = (("8B", LORA_BF16), ("8B", FULL), ("70B", LORA_NF4))
_ECG = ("v5e-8", "v5e-16", "v5p-128", "gpu:h100:1")
_SIZES = ("Ti", "S", "B", "L", "H")
_READER = paper.ROOT / "benchmarks" / "results" / "ecg_input_epyc2.json"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown: the first column as text, the others to the right, and that it is arithmetic."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + f"\n\n{NOTE}"


def short(value: float) -> str:
    """Three digits, thousands apart."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.{digits}f}"


def sections() -> str:
    """The page from its heading on, in Markdown."""
    parts = (_opening().strip(), _parameters(), _sequence(), _chips(), _data(), _recordings())
    return "\n\n".join(("## Scaling on paper", *map(wrapped, parts))) + "\n"


def wrapped(text: str) -> str:
    """Paragraphs in lines of 120; headings, tables, formulas and pictures as they are."""
    parts = text.split("\n\n")
    keep = ("#", "|", "    ", "![")
    return "\n\n".join(
        part if part.startswith(keep) else fill(part, 120, break_long_words=False, break_on_hyphens=False)
        for part in parts
    )


def _opening() -> str:
    return """
What follows is worked out by `python benchmarks/scaling_paper.py` from the shapes of published models and the data
sheets of chips (`medjax/parallel/chips.py`); the compiler has no part in it. v5p-128 has 128 chips here (Google
counts cores on v4 and v5p and says v5p-256); a chip of 7x is its two cores. N is the number of weights in the
layers' projections. LoRA is of rank 64 on all of them. Every time is a bound from below: links and chips at their
full rate, no latency. The bounds on FSDP, tensor and data parallelism follow J. Austin et al., "How to Scale Your
Model", part 5 (here: the book); operations are those that `medjax/train/flops.py` counts."""


def _parameters() -> str:
    rows = []
    for size in paper.MODELS:
        config = model(size)
        flops = [
            f"{paper.step_flops(config, way, _LENGTH, again=again) / 1e9:,.1f}"
            for way in (FULL, LORA_BF16)
            for again in (False, True)
        ]
        rows.append([size, f"{paper.parameters(config) / 1e9:.2f}", f"{config.matmul_params / 1e9:.2f}", *flops])
    cost = table(
        ("model", "weights, 1e9", "N, 1e9", "full", "full, remat", "LoRA", "LoRA, remat"),
        rows,
    )
    held = table(
        ("model, way", "GiB", *_HOLDING),
        [
            [
                f"{size}, {way.name}",
                f"{paper.held_bytes(model(size), way) / GIB:,.1f}",
                *(paper.smallest_slice(chip(name), paper.held_bytes(model(size), way)) or "–" for name in _HOLDING),
            ]
            for size in paper.MODELS
            for way in WAYS
        ],
    )
    whole, adapted = (
        paper.smallest_slice(chip("v5e"), paper.held_bytes(model("70B"), way)) for way in (FULL, LORA_NF4)
    )
    return f"""### Parameters

A trained weight costs 6 operations a token (2 forward, 2 for the gradient of the input, 2 for its own), a frozen
one 4, so LoRA saves a third of the operations and not more. `train.remat = "full"` computes the forward pass once
more: 8 N and 6 N, and LoRA saves a quarter. Attention and unembedding come on top. GFLOP a token in documents of
{_LENGTH:,}:

{cost}

Memory is what LoRA is for. Full training holds {paper.TRAINED_BYTES} bytes a weight (float32 master, two moments of
Adam, gradient); with LoRA the base takes 2 (bfloat16), 1 (int8) or 0.52 (NF4) and only adapters take 16. The table
shows the sum over all chips, and the smallest slice that holds it in 80 % of its memory; activations want the rest
and often more. A 70B model takes {whole} v5e chips to be trained whole and {adapted} with an NF4 base, before
activations.

{held}"""


def _sequence() -> str:
    models = ("8B", "70B")
    shares = table(
        (
            "tokens of a document",
            *(f"{size}, {way.name.partition(',')[0]}" for size in models for way in (FULL, WAYS[1])),
        ),
        [
            [
                f"{length:,}",
                *(
                    f"{100 * paper.attention_share(model(size), way, length):.0f} %"
                    for size in models
                    for way in (FULL, LORA_BF16)
                ),
            ]
            for length in _LENGTHS
        ],
    )
    policies = {
        "full": "the input of each layer",
        "attention": "and attention's output",
        "dots": "and outputs of projections",
        "none": "everything",
    }
    rows = []
    for remat, kept in policies.items():
        row = [f"`{remat}`: {kept}"]
        for size in models:
            bytes_ = paper.kept_bytes(model(size), remat)
            row += [f"{bytes_ / 1024:,.0f}", f"{bytes_ * _LENGTH / GIB:,.2f}", f"{bytes_ * 32_768 / GIB:,.1f}"]
        rows.append(row)
    kept = table(
        (
            "`train.remat` keeps",
            *(f"{size}, {what}" for size in models for what in ("KiB a token", "GiB, 2,048 tokens", "GiB, 32,768")),
        ),
        rows,
    )
    return f"""### Sequence

Projections cost the same for every token; attention costs 12 x layers x heads x head_dim x (n + 1) / 2 operations a
token of a document of n tokens, forward and backward, as a token sees only what came before. Packed documents do
not see each other, so what counts is their own length, not the window. Share of attention in the operations of a
step:

{shares}

Up to 8,192 tokens attention hardly matters for the time; from 32,768 on it decides, and more so with LoRA, whose
other operations are fewer. Memory is the sooner limit. What the forward pass keeps for the backward pass, on a chip
with all heads (`tensor` divides what is kept besides the layers' inputs, `sequence` divides the tokens):

{kept}

One row of 2,048 tokens of a 70B model, with everything kept, is more than most chips hold: the recipes use `full`."""


def _chips() -> str:
    config = model("8B")
    axes = []
    for name in _CHIPS:
        one = chip(name)
        per_axis = one.bf16_flops / one.ici_bytes_per_s / (2 if one.is_tpu else 1)
        axes.append([name, *(short(per_axis / n) if n <= one.ici_axes else "–" for n in (1, 2, 3))])
    slices = []
    for name in _FSDP:
        place = topology(name)
        found = [short(paper.fsdp_tokens(config, way, place)) for way in WAYS]
        label = f"{name} ({'x'.join(map(str, place.shape))}{', rings' if any(place.rings) else ''})"
        slices.append(
            [label if place.chip.is_tpu else name, *found, short(paper.fsdp_tokens(model("70B"), LORA_NF4, place))]
        )
    tensor = []
    for name in _CHIPS:
        one = chip(name)
        links = (1, 2, 4) if one.is_tpu else (1,)
        for size in ("8B", "70B"):
            ways = [paper.tensor_axis(model(size), LORA_BF16, one, n * one.ici_bytes_per_s) for n in links]
            tensor.append([f"{name}, {size}", *(f"{ways[i]:.1f}" if i < len(ways) else "–" for i in range(3))])
    network = [
        [name, *(short(paper.dcn_tokens(config, way, chip(name))) for way in (FULL, LORA_BF16))] for name in _CHIPS
    ]
    v5e = paper.fsdp_tokens(config, LORA_BF16, topology("v5e-16"))
    return f"""### Chips

**FSDP** gathers the weights for the forward and for the backward pass and scatters the gradients. It is hidden as
long as computing takes longer:

    operations a token x tokens of a chip / peak  >  (n - 1) / n x bytes sent / bandwidth of the chip's links

The batch must grow with the slice, not the model: weights cancel out. Trained whole in bfloat16 both sides have 6
N, so a chip needs peak / bandwidth tokens. On rings along one, two or three axes of the torus (two links each;
GPUs: NVLink):

{table(("chip", "1 axis", "2 axes", "3 axes"), axes)}

The first number of v5p is the 2,550 of the book, the last its 850. What medjax sends is a little else: float32
gradients when all is trained (8 N bytes against 6 N operations); with LoRA no gradients but the adapters', and a
quantised base travels as it is stored (0.52 bytes a weight for NF4, where bfloat16 has 2). Small slices lack rings:
v5e and v6e have them along an axis of 16, v4, v5p and 7x in whole cubes of 4 x 4 x 4. Tokens a chip and step below
which a slice, all of it one FSDP axis, waits for its links; layers only, nothing computed again (remat `full`:
three quarters of the number for full training, two thirds for LoRA):

{table(("slice", *(f"8B, {way.name}" for way in WAYS), "70B, LoRA, NF4 base"), slices)}

For a user: with 8B and LoRA on v5e-16, below {v5e:,.0f} tokens a chip and step the links are the limit; one row of
2,048 tokens on every chip is just there, with remat `full` or a quantised base beyond it. On v6e-16, whose chips
compute nearly five times as fast over links twice as fast, the same run wants three rows. Accumulation does not
help, as each part gathers the weights anew; a larger batch at one time does, and so does a larger slice with rings.

![Time of computing and of gathering the weights, by tokens of a chip, on three slices]({FIGURE})

**Tensor parallelism** sums activations twice a layer forward and twice backward, however small the batch, so it has
a largest useful size instead of a smallest batch: n - 1 < operations of a layer and token x bandwidth / (16 x embed
x peak). The largest n with LoRA (in full training n - 1 may be half as large again: gradients of weights need no
sum):

{table(("chip, model", "line, 1 link", "ring, 2 links", "two rings, 4 links"), tensor)}

On GPUs the first column is all of NVLink. Up to n `tensor` can be hidden, beyond it the links are the limit:
`tensor=4` along a side of v5e-16 is right for 8B, `tensor=16` over all of it is too much. It may be used all the
same where the batch cannot be larger or memory is short.

**Between slices** (or nodes of GPUs) only gradients go over the network, in float32, along `data`, the first axis
of the mesh. Tokens of a slice and step below which two slices wait for it, 8B; the size of the slices does not
matter:

{table(("slices of", "full", "LoRA"), network)}

A slice of 16 chips with a row of 2,048 tokens each has 32,768: plenty for LoRA, short of what full training wants on
TPUs."""


def _data() -> str:
    rows = []
    for name in _RUNS:
        place = topology(name)
        for size, way in _TASKS:
            if place.chips * place.chip.hbm_bytes * 0.8 < paper.held_bytes(model(size), way):
                continue
            flops = paper.step_flops(model(size), way, _LENGTH)
            spent = [paper.days(tokens * flops, place, MFU) for tokens in (1e9, 1e10)]
            rate = place.chip.bf16_flops * MFU / flops
            hours = short(24 * spent[0] * place.chips)
            rows.append([f"{name}: {size}, {way.name}", short(rate), *(short(one) for one in spent), hours])
    again = {
        way: 100 * MFU * paper.step_flops(config, way, _LENGTH, again=True) / paper.step_flops(config, way, _LENGTH)
        for config in (model("8B"),)
        for way in (FULL, LORA_BF16)
    }
    recipe = 3000 * 8 * 1024 * paper.step_flops(model("70B"), LORA_NF4, 1024)
    hours = {name: 24 * paper.days(recipe, topology(name), MFU) for name in _RUNS}
    header = ("slice: run", "tokens/s a chip", "days, 1e9 tokens", "days, 1e10 tokens", "chip hours, 1e9 tokens")
    return f"""### Data

Time = tokens x operations a token / (chips x peak x MFU). The MFU of {_MFU_TEXT} is **assumed**. It counts the
model's own operations, so with remat `full` a chip must work at {again[FULL]:.0f} % of its peak, with LoRA at
{again[LORA_BF16]:.0f} %. `python -m medjax.plan` gives an estimate for a run (where the plans of 70B models on
small slices say less, believe them), and only the run itself the truth. Documents of {_LENGTH:,} tokens:

{table(header, rows)}

Published adaptations need far less: `configs/sft/llama2_70b_qlora.toml` (3,000 steps of 8 rows of 1,024 tokens,
0.025e9 in all) is {hours["v5e-16"]:.1f} hours of v5e-16 and {hours["gpu:h100:8"]:.1f} of eight H100."""


def _recordings() -> str:
    reader = json.loads(_READER.read_text("utf-8"))
    measured, cores_measured = reader["records_per_s"]["medjax"], reader["device"]["cores"]
    per_core = measured / cores_measured
    place = topology("v5e-16")
    stored, sent = paper.record_bytes(2), paper.record_bytes(4 + 1)
    stored_kb, sent_kb = stored / 1000, sent / 1000
    day, needs = [], []
    for size in _SIZES:
        rates = [paper.records_per_s(size, topology(name), MFU) for name in _ECG]
        day.append([f"ViT-{size}", f"{paper.record_flops(size) / 1e9:,.0f}", *(short(rate * 0.0864) for rate in rates)])
        rate = paper.records_per_s(size, place, MFU)
        cores = rate / per_core
        needs.append(
            [f"ViT-{size}", *map(short, (rate, rate * stored / 1e6, rate * sent / 1e6, cores, cores / place.hosts))]
        )
    epochs = 800e6 / paper.records_per_s("H", place, MFU) / 86_400
    whole = paper.record_flops("H") / paper.record_flops("Ti")
    return f"""### Recordings

How many ECGs a slice pre-trains on in a day, in millions: the masked autoencoder of
`configs/ecg/mae_huge_paper.toml` (12 leads x 5,000 samples, 240 patches, 60 of them encoded, decoder of 8 layers of
512 over all 240), with encoders from Ti to H. Forward and backward are three passes; the MFU of {_MFU_TEXT} is
**assumed**.

{table(("encoder", "GFLOP a record", *_ECG), day)}

The decoder is the same for all, so ViT-H costs {whole:.1f} times ViT-Ti, not a hundred times, as the encoders alone
would. The 800 epochs of the recipe over a million recordings are {epochs:.1f} days of v5e-16 with ViT-H.

The reader must keep up. A stored record has {stored_kb:.0f} kB (16-bit steps); {sent_kb:.0f} kB go to the chips
(float32 and which samples are valid). Reading and preparing were measured at {per_core:.0f} records/s a core
(`benchmarks/ecg_input.py`: {measured:.0f} on {cores_measured} cores, high-pass and resampling to 250 Hz; at 500 Hz
it was not measured). For v5e-16, which has {place.hosts} hosts:

{table(("encoder", "records/s", "from disk, MB/s", "to chips, MB/s", "cores", "cores a host"), needs)}

ViT-H keeps a few cores of each host busy. The small encoders wait for the host unless it has many cores: for them
fewer chips do as much."""


def main() -> int:
    """Print the page; draw the figure where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--figure", type=Path, help="file for the picture, SVG")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # shapes are traced, no accelerator is wanted
    if options.figure:
        options.figure.write_text(figure(), "utf-8")
    print(sections(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
