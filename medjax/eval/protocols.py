"""Protocols: the exact bytes of a prompt, what the model is asked to do, and how its answer is read.

  strict          generation; the answer is a set of letters (or a number), anything else is unparsed and counted
  cot             generation: reasoning within a budget, then the answer on a last line, forced where none was written
  choice-logprob  no generation: the choice whose text (or letter) is most probable; for N answers the N most probable
  kasai           the IgakuQA authors' format: their demonstrations, number of answers told, exact set, nothing trimmed
  gestalt         the japanese-lm-med-harness: answer text against choice texts by similarity; for comparison only

A question is put as a conversation (system, demonstrations, question). With a chat template it is rendered by it,
otherwise its texts are joined by newlines. Every score carries a protocol id such as "kasai-3shot". The wording of
`strict`, `cot` and `choice-logprob` is medjax's own and stands in medjax.data.exams.wording, where training finds it
too; the bytes of `kasai` are those of jungokasai/IgakuQA@2bc4c3d. docs/protocols.md shows every prompt to the byte.

Any of them may ask an item more than once: under every cyclic shift of its choices, with several templates, several
times by sampling (medjax.eval.asking), and counts one answer of them all (medjax.eval.voting, rotation).
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from medjax.data.exams import wording
from medjax.data.qa import Item
from medjax.data.text.chat import ChatTemplate
from medjax.eval.gestalt import is_asked
from medjax.eval.settings import PROTOCOLS, ProtocolSettings
from medjax.eval.templates import PromptTemplate, labels, stem

# new tokens that an answer may take: a letter or a number; what other kinds of items ask for
_KIND_ROOM = {"entities": 512, "text": 512}
_ROOM = {"strict": 32, "cot": 32, "kasai": 32, "gestalt": 256}
_THINK = ProtocolSettings.think_tokens


@dataclass(frozen=True)
class Prompt:
    """A rendered question: context text, and for choice-logprob the continuations to score (one a choice).

    is_chat  the text was made by a chat template
    special  special tokens that the text holds are read as such: those of a chat template, or of a template by file
    """

    text: str
    continuations: tuple[str, ...] = ()
    is_chat: bool = False
    special: bool = False


_KASAI_SYSTEM = {"ja": "医師国家試験を解きます。", "en": "Let's try Japan's medical license exam."}
_GESTALT = {
    "ja": "### 質問\n{{ instruction }}\n### 選択肢\n{{ input }}\n### 正しい選択肢の文\n",
    "en": "### Question\n{{ instruction }}\n### Choices\n{{ input }}\n### Text of the correct choice\n",
}


class Protocol:
    """One protocol with its settings.

    templates  replace the protocol's own wording of the question and its system text; every item is asked with each

    Raises ValueError for settings that the protocol cannot follow.
    """

    def __init__(self, name: str, settings: ProtocolSettings, templates: Sequence[PromptTemplate] = ()):
        if name not in PROTOCOLS:
            raise ValueError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}.")
        if name == "gestalt" and settings.num_fewshot:
            raise ValueError(
                f"protocol: got num_fewshot={settings.num_fewshot} under gestalt, expected 0: it is a zero-shot "
                "protocol; leave --num-fewshot out, or choose another protocol."
            )
        if name == "choice-logprob" and settings.temperature:
            raise ValueError(
                f"protocol: choice-logprob draws no answers, got temperature {settings.temperature}; set it to 0 and "
                "samples to 1, or choose a protocol that generates."
            )
        self.name = name
        self.settings = settings
        self.templates = tuple(templates)
        # what the wordings an item is asked with are called: one a template, "" for the protocol's own
        self.wordings = labels(self.templates) or ("",)
        usual = _GESTALT if name == "gestalt" else {}
        self._usual = {language: PromptTemplate(source) for language, source in usual.items()}

    @property
    def id(self) -> str:
        """Name with every setting that makes scores differ, such as "choice-logprob-letter-3shot"."""
        s, parts = self.settings, [self.name]
        if not self.generates:
            parts += [s.continuation] if s.continuation != "text" else []
            parts += [f"per-{s.normalise}"] if s.normalise != "sum" else []
        elif s.max_new_tokens:  # be it the default of letters: lists and texts have another
            parts.append(f"{s.max_new_tokens}tokens")
        parts += [f"{s.think_tokens}think"] if self.reasons and s.think_tokens != _THINK else []
        if len(self.templates) == 1:
            parts.append(f"template-{self.templates[0].digest[:8]}")
        elif self.templates:
            every = hashlib.sha256("".join(template.digest for template in self.templates).encode()).hexdigest()
            parts.append(f"majority-{len(self.templates)}templates-{every[:8]}")
        parts += ["rotated"] if s.rotate else []
        if s.temperature:
            parts += [f"{s.samples}samples", f"t{s.temperature:g}"]
            parts += [f"p{s.top_p:g}"] if s.top_p < 1 else []
        parts += [s.fewshot] if s.fewshot and s.num_fewshot else []
        return "-".join([*parts, f"{s.num_fewshot}shot"])

    @property
    def generates(self) -> bool:
        return self.name != "choice-logprob"

    @property
    def reasons(self) -> bool:
        """Whether an answer comes after reasoning, within a budget of its own."""
        return self.name == "cot"

    @property
    def picks_letters(self) -> bool:
        """Whether a choice is named by its letter, which means nothing where the choices are not shown.

        A choice that is scored by its text, or found by its likeness to what was written, need not stand in the prompt.
        """
        return self.name != "gestalt" if self.generates else self.settings.continuation == "letter"

    def room(self, items: Iterable[Item]) -> int:
        """New tokens of an answer to any of these items: lists of entities and texts get more."""
        return self.settings.max_new_tokens or max(_KIND_ROOM.get(item.kind or "", _ROOM[self.name]) for item in items)

    def stop(self, is_chat: bool) -> tuple[str, ...]:
        """Texts that end an answer once something visible was written; in a chat the model ends its turn itself."""
        return () if is_chat and self.name != "gestalt" else ("\n",)

    def reasoning_stop(self, is_chat: bool) -> tuple[str, ...]:
        """Texts that end reasoning: without a chat, where a next question begins."""
        return () if is_chat else wording.question_marks()

    def asks(self, item: Item, language: str) -> bool:
        """Whether the protocol puts this item at all.

        Gestalt leaves out what its harness leaves out; kasai and choice-logprob know choices and numbers only.
        """
        if self.name == "gestalt":
            return is_asked(item, language)
        return item.kind in ("choice", "number") or self.name in ("strict", "cot")

    def prompt(
        self,
        item: Item,
        demonstrations: Sequence[Item],
        language: str,
        chat: ChatTemplate | None,
        number: int = 0,
        specials: Collection[str] = (),
    ) -> Prompt:
        """The prompt of an item, in bytes that depend on nothing else.

        number    which of `wordings`
        specials  texts that the tokenizer can read as special tokens
        """
        template = self._template(language, number)
        turns = [(self._question(demo, language, template), self._gold(demo, language)) for demo in demonstrations]
        system = None
        if not template:
            system = _KASAI_SYSTEM[language] if self.name == "kasai" else wording.system(language)
        question = self._question(item, language, template)
        if chat:
            messages = [{"role": "system", "content": system}] if system else []
            for user, assistant in turns:
                messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
            text = chat.render([*messages, {"role": "user", "content": question}])
        else:
            lines = [system] if system else []
            for asked, answer in turns:
                # the IgakuQA authors give an answer its own line; elsewhere it stands where the model puts its own
                lines += [asked, answer] if self.name == "kasai" else [asked + wording.answer_gap(asked) + answer]
            text = "\n".join([*lines, question])
        special = chat is not None or self.writes(specials, number)
        return Prompt(text, self._continuations(item, text), is_chat=chat is not None, special=special)

    def writes(self, specials: Collection[str], number: int = 0) -> bool:
        """Whether the template of a wording writes special tokens, such as the turns of ChatML."""
        return bool(self.templates) and any(text in self.templates[number].source for text in specials)

    def _template(self, language: str, number: int) -> PromptTemplate | None:
        if self.templates:
            return self.templates[number]
        return self._usual.get(language)

    def _continuations(self, item: Item, text: str) -> tuple[str, ...]:
        if self.generates:
            return ()
        values = item.letters if self.settings.continuation == "letter" else wording.scored_choices(item)
        return tuple(wording.answer_gap(text) + value for value in values)

    def _gold(self, item: Item, language: str) -> str:
        if self.reasons:
            return wording.reasoned_answer(item, language)
        return wording.answer(item, as_letters=self.generates or self.settings.continuation == "letter")

    def _question(self, item: Item, language: str, template: PromptTemplate | None) -> str:
        if template:
            return template.render(item)
        if self.name == "kasai":
            return _kasai_question(item, language)
        if self.reasons:
            return wording.reasoned_question(item, language)
        return wording.question(item, language, asks_letter=self.generates)


def _kasai_question(item: Item, language: str) -> str:
    if language == "ja":
        text = f"問題: {stem(item)}"
        ask = f"必ずa,b,c,d,eの中からちょうど{item.num_answers}個選んでください。\n答え:"
    else:
        text = f"Problem: {stem(item)}"
        ask = f"Choose exactly {item.num_answers} correct choice(s) from a, b, c, d, e.\nAnswer:"
    if item.is_numeric:
        return text
    choices = [f"{letter}: {choice}" for letter, choice in zip(item.letters, item.choices, strict=True)]
    return "\n".join([text, *choices, ask])


def normalised(logprobs: Sequence[float], texts: Sequence[str], tokens: Sequence[int]) -> Mapping[str, list[float]]:
    """Log-probabilities of continuations by every normalisation.

    texts   the continuations without their leading blank; tokens how many tokens each has
    """
    return {
        "sum": list(logprobs),
        "token": [value / max(count, 1) for value, count in zip(logprobs, tokens, strict=True)],
        "byte": [value / max(len(text.encode()), 1) for value, text in zip(logprobs, texts, strict=True)],
        "character": [value / max(len(text), 1) for value, text in zip(logprobs, texts, strict=True)],
    }


def pick(values: Sequence[float], letters: Sequence[str], count: int) -> tuple[str, ...]:
    """The letters of the `count` largest values, sorted; the first letter wins a tie."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return tuple(sorted(letters[i] for i in order[:count]))


def probability_of_best(values: Sequence[float]) -> float:
    """The probability of the largest of some log-probabilities (or scores like them) among them: their softmax."""
    best = max(values)
    return 1 / math.fsum(math.exp(value - best) for value in values)
