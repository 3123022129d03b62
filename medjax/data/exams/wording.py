"""The wording of medjax's own prompts: what the protocols `strict` and `choice-logprob` ask, and what training shows.

Both render an item by the functions below, so that a model trained on exam items has seen the bytes it is graded on:

  system(language)                                     You answer medical examination questions.
  question(item, language, asks_letter=True)           Question: ... a. ... b. ... Reply with the letter ... Answer:
  answer_gap(text) + answer(item, as_letters=True)     " b"

Without a chat template the texts are joined by newlines and the answer follows the question after the gap; in a chat
the answer is a message of its own, without the gap. docs/protocols.md shows every prompt to the byte.
"""

import json
from dataclasses import dataclass

from medjax.data.qa import Item


@dataclass(frozen=True)
class _Wording:
    """Texts of one language; those from `one` to `similarity` say how to answer."""

    system: str
    question: str
    one: str
    many: str
    number: str
    entities: str
    similarity: str
    answer: str


_WORDING = {
    "ja": _Wording(
        system="医学の試験問題に答えます。",
        question="問題: ",
        one="正しい選択肢の記号を1つだけ答えてください。",
        many="正しい選択肢の記号を{n}つ、コンマで区切って答えてください。",
        number="数値だけを答えてください。",
        entities='該当する表現を本文のとおりに、JSONのリストだけで答えてください。例: ["表現1", "表現2"] なければ []',
        similarity="2つの文の意味がどれほど近いかを、0（まったく異なる）から5（同じ）までの数値1つだけで答えてください。",
        answer="答え:",
    ),
    "en": _Wording(
        system="You answer medical examination questions.",
        question="Question: ",
        one="Reply with the letter of the correct choice only.",
        many="Reply with the letters of the {n} correct choices only, separated by commas.",
        number="Reply with the number only.",
        entities='Reply with the expressions as they stand in the text, as a JSON list only, such as ["one", "two"]; '
        "[] if there are none.",
        similarity="Reply with one number only, from 0 (nothing in common) to 5 (the same): how close are the two "
        "texts in meaning?",
        answer="Answer:",
    ),
}
LANGUAGES = tuple(_WORDING)


def system(language: str) -> str:
    """The system text that opens a conversation in "ja" or "en"."""
    return _WORDING[language].system


def question(item: Item, language: str, *, asks_letter: bool) -> str:
    """An item as it is put to the model: context, question, choices, how to answer, and the cue of the answer.

    asks_letter  the line that asks for letters (or a number) stands before the cue: protocol `strict`; without it the
                 prompt is that of `choice-logprob`. Items of kind entities and similarity always have such a line,
                 those of kind text never.
    """
    words = _WORDING[language]
    lines = [item.context] if item.context else []
    lines.append(words.question + item.question)
    lines += [f"{letter}. {choice}" for letter, choice in zip(item.letters, item.choices, strict=True)]
    if item.kind == "entities":
        lines.append(words.entities)
    elif item.kind == "similarity":
        lines.append(words.similarity)
    elif asks_letter and item.kind in ("choice", "number"):
        ask = words.number if item.is_numeric else words.one if item.num_answers == 1 else words.many
        lines.append(ask.format(n=item.num_answers))
    return "\n".join([*lines, words.answer])


def answer_gap(text: str) -> str:
    """What stands between a prompt and its answer: nothing after a newline or blank, else a blank."""
    return "" if text[-1:].isspace() else " "


def answer(item: Item, *, as_letters: bool) -> str:
    """The gold answer as a worked example shows it.

    Letters, or choice texts, joined by ","; entities as a JSON list; a number or a reference text as it is.
    """
    if item.kind == "entities":
        return json.dumps(item.answer, ensure_ascii=False)
    if as_letters or item.kind != "choice":
        return ",".join(item.answer)
    return ",".join(item.choices[item.letters.index(letter)] for letter in item.answer)


def scored_choices(item: Item) -> tuple[str, ...]:
    """The texts of the choices as they are scored: stripped; a blank one (it occurs) is stood in for by its letter."""
    return tuple(choice.strip() or letter for choice, letter in zip(item.choices, item.letters, strict=True))
