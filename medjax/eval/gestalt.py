"""The protocol of the japanese-lm-med-harness: exact match and gestalt match of the answer text with the choice texts.

Kept for comparison with published tables (arXiv 2310.10083, 2406.14882, 2409.11783); for anything new use the strict
protocol. A model answers with the text of the choice, not its letter. The gestalt match takes the choice most similar
to the answer (difflib's ratio in both directions), as often as there are gold answers, so their number is known.

What follows from it, measured on its 1,450 Japanese IgakuQA items: nothing is ever unparsed, an empty answer becomes
choice a and scores 16.97 %, the right letter alone scores 16.41 %, and the right text scores 99.24 %, because gold
texts are joined and split at "," even where a choice holds one.
Behaviour after stardust-coder/japanese-lm-med-harness@ef9544a.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from medjax.data.qa import Item

# longer questions are left out of the denominator
MAX_QUESTION_CHARACTERS = {"ja": 1024, "en": 2048}


@dataclass(frozen=True)
class GestaltVerdict:
    """Whether the answer is the gold text, whether the texts of the most similar choices are, and their letters."""

    exact: bool
    gestalt: bool
    letters: tuple[str, ...]


def is_asked(item: Item, language: str) -> bool:
    """Whether the harness asks an item: no image, five choices, and not longer than its limit for the language."""
    fits = len(item.question) <= MAX_QUESTION_CHARACTERS[language]
    return not item.needs_image and len(item.choices) == 5 and fits


def gold_text(item: Item) -> str:
    """The texts of the gold choices joined by ","."""
    return ",".join(item.choices[item.letters.index(letter)] for letter in item.answer)


def extract(output: str) -> str:
    """The first line of what was written; the harness cuts off its prompt before, which no output here holds."""
    return output.strip().split("\n")[0].strip()


def judge_gestalt(item: Item, response: str) -> GestaltVerdict:
    """Judge an extracted response; see the module's docstring."""
    gold = gold_text(item)
    cleaned = _clean(response)
    wanted = gold.split(",")
    taken = _most_similar(item.choices, cleaned, len(wanted))
    texts = [item.choices[i] for i in taken]
    return GestaltVerdict(
        cleaned == _clean(gold), sorted(texts) == sorted(wanted), tuple(item.letters[i] for i in taken)
    )


def _clean(text: str) -> str:
    return text.replace(".", "").strip()


def _most_similar(choices: Sequence[str], response: str, count: int) -> list[int]:
    """Positions, since two choices may have the same text."""
    similarity = [_similarity(choice, response) for choice in choices]
    return sorted(range(len(choices)), key=lambda i: (-similarity[i], i))[:count]  # the first one wins a tie


def _similarity(choice: str, response: str) -> float:
    # the ratio depends on which text comes first
    return (SequenceMatcher(None, choice, response).ratio() + SequenceMatcher(None, response, choice).ratio()) / 2
