"""The wording of medjax's own prompts: what the protocols `strict` and `choice-logprob` ask, and what training shows.

Both render an item by the functions below, so that a model trained on exam items has seen the bytes it is graded on:

  system(language)                                     You answer medical examination questions.
  question(item, language, asks_letter=True)           Question: ... a. ... b. ... Reply with the letter ... Answer:
  answer_gap(text) + answer(item, as_letters=True)     " b"

Without a chat template the texts are joined by newlines and the answer follows the question after the gap; in a chat
the answer is a message of its own, without the gap. docs/protocols.md shows every prompt to the byte.
"""

from dataclasses import dataclass

from medjax.data.qa import Item


@dataclass(frozen=True)
class _Wording:
    """Texts of one language; `one` and `many` say how to answer."""

    system: str
    question: str
    one: str
    many: str
    number: str
    answer: str


_WORDING = {
    "ja": _Wording(
        system="医学の試験問題に答えます。",
        question="問題: ",
        one="正しい選択肢の記号を1つだけ答えてください。",
        many="正しい選択肢の記号を{n}つ、コンマで区切って答えてください。",
        number="数値だけを答えてください。",
        answer="答え:",
    ),
    "en": _Wording(
        system="You answer medical examination questions.",
        question="Question: ",
        one="Reply with the letter of the correct choice only.",
        many="Reply with the letters of the {n} correct choices only, separated by commas.",
        number="Reply with the number only.",
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
                 prompt is that of `choice-logprob`
    """
    words = _WORDING[language]
    lines = [item.context] if item.context else []
    lines.append(words.question + item.question)
    lines += [f"{letter}. {choice}" for letter, choice in zip(item.letters, item.choices, strict=True)]
    if asks_letter:
        ask = words.number if item.is_numeric else words.one if item.num_answers == 1 else words.many
        lines.append(ask.format(n=item.num_answers))
    return "\n".join([*lines, words.answer])


def answer_gap(text: str) -> str:
    """What stands between a prompt and its answer: nothing after a newline or blank, else a blank."""
    return "" if text[-1:].isspace() else " "


def answer(item: Item, *, as_letters: bool) -> str:
    """The gold answer as a worked example shows it: letters, or choice texts, joined by ","; a number as it is."""
    if as_letters or item.is_numeric:
        return ",".join(item.answer)
    return ",".join(item.choices[item.letters.index(letter)] for letter in item.answer)


def scored_choices(item: Item) -> tuple[str, ...]:
    """The texts of the choices as they are scored: stripped; a blank one (it occurs) is stood in for by its letter."""
    return tuple(choice.strip() or letter for choice, letter in zip(item.choices, item.letters, strict=True))
