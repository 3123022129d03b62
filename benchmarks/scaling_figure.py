"""Drawn: the time of computing a step and of gathering its weights, over the tokens of a chip; log-log, as SVG."""

from math import log10

import scaling_arithmetic as paper
from scaling_arithmetic import LORA_BF16, LORA_NF4

from medjax.parallel.topology import topology
from medjax.report.plane import Plane

_DRAWN = (("v5e-16", "accent"), ("v5p-128", "held"), ("v6e-16", "ink"))


def figure() -> str:
    """Compute and gathers of a step of 8B LoRA over the tokens of a chip, on three slices, as SVG."""
    config, (first, last) = paper.model("8B"), (2.0, 5.0)
    plane = Plane(
        "8B, LoRA: when computing hides FSDP",
        "Seconds of a step of Llama 3 8B with LoRA on three slices: computing, which rises with the tokens of a chip, "
        "and gathering the weights, which does not. Right of where the two cross, the links are not the limit.",
        "tokens of a chip and step",
        "seconds of computing a step, by arithmetic",
        (first, last),
        (-3.0, 1.5),
        x_shown=lambda power: f"{10**power:,.0f}" if power < last else "",
        y_shown=lambda power: f"{10**power:g}",
    )
    for name, kind in _DRAWN:
        place = topology(name)
        equal = {way: paper.fsdp_tokens(config, way, place) for way in (LORA_BF16, LORA_NF4)}
        rate = paper.kernel_flops(config, LORA_BF16) / place.chip.bf16_flops  # seconds a token
        gathers = log10(rate * equal[LORA_BF16])
        plane.explain("line", kind, f"{name}: from {equal[LORA_BF16]:,.0f} tokens, NF4 {equal[LORA_NF4]:,.0f}")
        plane.curve((first, last), (gathers, gathers), kind, width=1.2, dashed=True)
        plane.curve((first, last), (log10(rate) + first, log10(rate) + last), kind)
        plane.dot(log10(equal[LORA_BF16]), gathers, kind)
        plane.dot(log10(equal[LORA_NF4]), log10(rate * equal[LORA_NF4]), "light")
    plane.explain("dashed", "muted", "gathers, bfloat16 base")
    plane.explain("dot", "light", "equal, NF4")
    return plane.svg()
