"""Outputs of two sides compared: where greedy decoding first differs, and whether it was a near-tie.

Two programs that compute the same logits in another order differ in the last bits. Greedy decoding then parts where
the two best tokens are about equally likely, and everything after that place is another text. So what counts is the
first difference of a prompt: how far the other side's token is behind the best one by medjax's logits there.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

NEAR_TIE = 5e-3  # of float32 logits; what two programs differ by is about a tenth of it

Tokens = Sequence[int]


class Place(NamedTuple):
    """What medjax's logits say about the token after some context.

    gap     of the best to the second best
    behind  of the best to the token that was asked about, 0 or more
    """

    gap: float
    behind: float


@dataclass(frozen=True)
class Difference:
    """Where the answers to a prompt first differ.

    at     index of the new token
    place  medjax's logits there, asked about the other side's token
    """

    prompt: int
    at: int
    ours: int
    theirs: int
    place: Place


def first_difference(ours: Tokens, theirs: Tokens) -> int | None:
    """Index of the first token that differs, None where none does.

    Raises ValueError for answers of different lengths: their speeds do not compare.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"outputs: got {len(ours)} and {len(theirs)} new tokens, expected the same number from both sides; one of "
            "them stopped at an end token."
        )
    return next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other), None)


def differences(
    prompts: Sequence[Tokens],
    ours: Sequence[Tokens],
    theirs: Sequence[Tokens],
    ask: Callable[[tuple[int, ...], int], Place],
) -> list[Difference]:
    """The first difference of every prompt whose answers differ; ask: context and a token -> medjax's logits there."""
    found = []
    for i, (prompt, one, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        if (at := first_difference(one, other)) is not None:
            place = ask((*prompt, *one[:at]), other[at])
            found.append(Difference(i, at, one[at], other[at], place))
    return found


def agreement(answers: int, found: Sequence[Difference]) -> dict[str, Any]:
    """The numbers of a comparison, as they go into the JSON; near_ties_only also where nothing differs."""
    return {
        "identical": 1 - len(found) / answers,
        "answers": answers,
        "near_ties_only": all(one.place.behind <= NEAR_TIE for one in found),
        "largest_behind": max((one.place.behind for one in found), default=0.0),
        "median_first_difference": statistics.median(one.at for one in found) if found else None,
        "differences": [{**asdict(one), "place": one.place._asdict()} for one in found],
    }


def largest_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float | None]]) -> float:
    """Of log-probabilities of the same tokens, answer by answer, where both are known; 0 where none is."""
    pairs = (pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True))
    return max((abs(one - other) for one, other in pairs if other is not None), default=0.0)


def values_by_place(tokens: Tokens, told: Sequence[tuple[int, float]]) -> list[float | None]:
    """The value of every token, None where it was not told or cannot be placed.

    told  (token, value) of some of the tokens in their order; one is placed where the first and the last way to find
          all of them in `tokens` agree

    Raises ValueError when they are no part of the tokens.
    """
    first = _earliest(list(tokens), [token for token, _ in told])
    backwards = _earliest(list(tokens)[::-1], [token for token, _ in told][::-1])
    last = [len(tokens) - 1 - at for at in reversed(backwards)]
    values: list[float | None] = [None] * len(tokens)
    for (_, value), at, other in zip(told, first, last, strict=True):
        if at == other:
            values[at] = value
    return values


def _earliest(tokens: list[int], part: list[int]) -> list[int]:
    """Index of every token of a part, each as early as can be."""
    found: list[int] = []
    for token in part:
        try:
            found.append(tokens.index(token, found[-1] + 1 if found else 0))
        except ValueError:
            raise ValueError(
                f"outputs: got a value for token {token}, expected tokens of the answer in order."
            ) from None
    return found


def extrapolated(prefill: float, decode: float, tried: int, new_tokens: int) -> float:
    """Seconds of a batch with `new_tokens` from a trial with `tried`, whose first token comes from the prefill."""
    return prefill + decode * (new_tokens - 1) / max(tried - 1, 1)
