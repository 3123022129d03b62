"""How a task of lm-evaluation-harness wants its texts, in this engine's words, and what of a text is its answer.

The generation_kwargs of a task's file:

  until: ["\\n\\n"]            stops
  max_gen_toks: 64            new tokens at the most; other back ends' names of it are understood too
  do_sample: true             draw, with temperature (1 where it is not said) and top_p; else greedy
  temperature: 0.7

Options that change nothing as they are set are passed over; one that would change the text is refused.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medjax.infer.generator import Generation

MAX_GEN_TOKS = 256  # new tokens where a task says nothing: the harness's own number
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first wins, as there
_UNDERSTOOD = {*_LIMITS, "until", "do_sample", "temperature", "top_p"}
# values of other options that change nothing: always, and for those that only draws look at
_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "use_cache": (True, False),
}
_NO_EFFECT_ON_DRAWS: dict[str, tuple[Any, ...]] = {"top_k": (0, -1), "min_p": (0,), "typical_p": (1,)}


@dataclass(frozen=True)
class Wanted:
    """until: stops; max_new_tokens: at the most; temperature: 0 is greedy; top_p: of the nucleus."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float


def read_generation(kwargs: Mapping[str, Any]) -> Wanted:
    """A task's generation_kwargs, with those of --gen_kwargs.

    Raises ValueError for what this engine does not do and would change the text.
    """
    given = {name: value for name, value in kwargs.items() if value is not None}
    asked = _number(given, "temperature", 1.0)
    draws = given.get("do_sample", "temperature" in given and asked > 0)
    temperature = asked if draws else 0.0
    for name, value in given.items():
        if name not in _UNDERSTOOD and not _without_effect(name, value, draws=temperature > 0):
            raise ValueError(
                f"generation_kwargs: got {name}={value!r}, expected only {', '.join(sorted(_UNDERSTOOD))}; take it out "
                f"of the task's file, or write --gen_kwargs {name}=None."
            )
    until = given.get("until", [])
    name = next((name for name in _LIMITS if name in given), _LIMITS[0])
    limit = given.get(name, MAX_GEN_TOKS)
    if not str(limit).isdigit() or int(limit) < 1:
        raise ValueError(f"generation_kwargs: got {name}={limit!r}, expected a whole number above 0; write one.")
    return Wanted(
        tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        int(limit),
        temperature,
        _number(given, "top_p", 1.0),
    )


def _number(given: Mapping[str, Any], name: str, otherwise: float) -> float:
    try:
        return float(given.get(name, otherwise))
    except (TypeError, ValueError):
        raise ValueError(f"generation_kwargs: got {name}={given[name]!r}, expected a number; write one.") from None


def _without_effect(name: str, value: Any, *, draws: bool) -> bool:
    if name in _NO_EFFECT_ON_DRAWS:
        return not draws or value in _NO_EFFECT_ON_DRAWS[name]
    return value in _NO_EFFECT.get(name, ())


def answer(
    generation: "Generation", stops: Sequence[str], ends: Collection[int], decode: Callable[[Sequence[int]], str]
) -> str:
    """What the harness calls the answer: nothing from the first stop on, one before the first word included.

    stops   texts; ends: special tokens that a task stops at, which texts do not show
    decode  from token ids to text
    """
    text = generation.text
    found = next((place for place, token in enumerate(generation.tokens) if token in ends), None)
    if found is not None:
        text = decode(generation.tokens[:found])
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def draw_seeds(prompts: Sequence[str], seed: int) -> list[int]:
    """A seed for each prompt: repeats of one draw differently, whatever else is asked in the same run."""
    seen: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        digest = hashlib.sha256(f"{seed} {seen[prompt]} {prompt}".encode("utf-8", "surrogatepass")).digest()
        seeds.append(int.from_bytes(digest[:4], "big"))
        seen[prompt] += 1
    return seeds
