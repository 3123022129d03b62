"""The wording of medjax's own prompts: what the protocols `strict` and `choice-logprob` ask, and what training shows.

Both render an item by the functions below, so that a model trained on exam items has seen the bytes it is graded on:

  system(language)                                     You answer medical examination questions.
  question(item, language, asks_letter=True)           Question: ... a. ... b. ... Reply with the letter ... Answer:
  answer_gap(text) + answer(item, as_letters=True)     " b"

and by `reasoned_question` and `reasoned_answer` what the protocol `cot` asks: reasoning, and the answer on a last line.

Without a chat template the texts are joined by newlines and the answer follows the question after the gap; in a chat
the answer is a message of its own, without the gap. docs/protocols.md shows every prompt to the byte.
"""

import json
from dataclasses import dataclass

from medjax.data.qa import Item


@dataclass(frozen=True)
class _Wording:
    """Texts of one language; those from `one` to `similarity` say how to answer, `last_…` how to after reasoning."""

    system: str
    question: str
    one: str
    many: str
    number: str
    entities: str
    similarity: str
    answer: str
    last_one: str
    last_many: str
    last_number: str
    last_other: str
    reasoning: str


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
        last_one="段階的に考え、最後の行に「答え: 」に続けて正しい選択肢の記号を1つだけ書いてください。",
        last_many=(
            "段階的に考え、最後の行に「答え: 」に続けて正しい選択肢の記号を{n}つ、コンマで区切って書いてください。"
        ),
        last_number="段階的に考え、最後の行に「答え: 」に続けて数値だけを書いてください。",
        last_other="段階的に考え、最後の行に「答え: 」に続けて答えだけを書いてください。",
        reasoning="考え方:",
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
        last_one='Think step by step. On the last line write "Answer: " and the letter of the correct choice only.',
        last_many=(
            'Think step by step. On the last line write "Answer: " and the letters of the {n} correct choices only, '
            "separated by commas."
        ),
        last_number='Think step by step. On the last line write "Answer: " and the number only.',
        last_other='Think step by step. On the last line write "Answer: " and the answer only.',
        reasoning="Reasoning:",
    ),
}


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
    lines = _shown(item, words)
    if ask := _ask(item, words) if asks_letter or item.kind not in ("choice", "number") else "":
        lines.append(ask)
    return "\n".join([*lines, words.answer])


def reasoned_question(item: Item, language: str) -> str:
    """An item as the protocol `cot` puts it: how to reason and to answer on a last line, and the cue of reasoning."""
    words = _WORDING[language]
    if item.kind in ("choice", "number"):
        last = words.last_number if item.is_numeric else words.last_one if item.num_answers == 1 else words.last_many
        asks = [last.format(n=item.num_answers)]
    else:
        asks = [words.last_other, _ask(item, words)]
    return "\n".join([*_shown(item, words), *filter(None, asks), words.reasoning])


def reasoned_answer(item: Item, language: str) -> str:
    """A worked example's reply to `reasoned_question`: its explanation where it has one, and the line of its answer."""
    line = f"{_WORDING[language].answer} {answer(item, as_letters=True)}"
    return f"{item.explanation.strip()}\n{line}" if item.explanation.strip() else line


def answer_cue(language: str) -> str:
    """What stands before an answer on a line of its own."""
    return _WORDING[language].answer


def question_marks() -> tuple[str, ...]:
    """How the next question begins, in every language: where a model that writes on has left its answer."""
    return tuple("\n" + words.question.rstrip() for words in _WORDING.values())


def _ask(item: Item, words: _Wording) -> str:
    """The line that says in which form to answer; none for a free text."""
    if item.kind == "choice":
        return words.one if item.num_answers == 1 else words.many.format(n=item.num_answers)
    return {"number": words.number, "entities": words.entities, "similarity": words.similarity}.get(item.kind or "", "")


def _shown(item: Item, words: _Wording) -> list[str]:
    """Context, question and choices, line by line."""
    lines = [item.context] if item.context else []
    lines.append(words.question + item.question)
    return lines + [f"{letter}. {choice}" for letter, choice in zip(item.letters, item.choices, strict=True)]


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
