"""Protocols: the exact bytes of a prompt, what the model is asked to do, and how its answer is read.

  strict          generation; the answer is a set of letters (or a number), anything else is unparsed and counted
  choice-logprob  no generation: the choice whose text (or letter) is most probable; for N answers the N most probable
  kasai           the IgakuQA authors' format: their demonstrations, number of answers told, exact set, nothing trimmed
  gestalt         the japanese-lm-med-harness: answer text against choice texts by similarity; for comparison only

A question is put as a conversation (system, demonstrations, question). With a chat template it is rendered by it,
otherwise its texts are joined by newlines. Every score carries a protocol id such as "kasai-3shot". The wording of
`strict` and `choice-logprob` is medjax's own and stands in medjax.data.exams.wording, where training finds it too; the
bytes of `kasai` are those of jungokasai/IgakuQA@2bc4c3d. docs/protocols.md shows every prompt to the byte.
"""

import difflib
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medjax.data.exams import wording
from medjax.data.exams.tasks import LoadedTask
from medjax.data.qa import Item
from medjax.data.text.chat import ChatTemplate
from medjax.eval.gestalt import is_asked
from medjax.eval.settings import PROTOCOLS, ProtocolSettings

# new tokens that an answer may take
_ROOM = {"strict": 32, "kasai": 32, "gestalt": 256}


@dataclass(frozen=True)
class Prompt:
    """A rendered question: context text, and for choice-logprob the continuations to score (one a choice).

    is_chat  the text was made by a chat template and holds special tokens
    """

    text: str
    continuations: tuple[str, ...] = ()
    is_chat: bool = False


_KASAI_SYSTEM = {"ja": "医師国家試験を解きます。", "en": "Let's try Japan's medical license exam."}
_VARIABLES = ("instruction", "input", "question", "choices", "letters", "context", "num_answers")
_GESTALT = {
    "ja": "### 質問\n{{ instruction }}\n### 選択肢\n{{ input }}\n### 正しい選択肢の文\n",
    "en": "### Question\n{{ instruction }}\n### Choices\n{{ input }}\n### Text of the correct choice\n",
}


class Protocol:
    """One protocol with its settings.

    template  replaces the protocol's own wording of the question and its system text
    """

    def __init__(self, name: str, settings: ProtocolSettings, template: "PromptTemplate | None" = None):
        if name not in PROTOCOLS:
            raise ValueError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}.")
        if name == "gestalt" and settings.num_fewshot:
            raise ValueError("protocol: gestalt is a zero-shot protocol; set num_fewshot to 0.")
        self.name = name
        self.settings = settings
        self._own_template = template
        usual = {language: PromptTemplate(source) for language, source in _GESTALT.items()} if name == "gestalt" else {}
        self._templates = usual if template is None else dict.fromkeys(wording.LANGUAGES, template)

    @property
    def id(self) -> str:
        """Name with every setting that makes scores differ, such as "choice-logprob-letter-3shot"."""
        parts = [self.name]
        if self.name == "choice-logprob":
            parts += [self.settings.continuation] if self.settings.continuation != "text" else []
            parts += [f"per-{self.settings.normalise}"] if self.settings.normalise != "sum" else []
        elif self.max_new_tokens != _ROOM[self.name]:
            parts.append(f"{self.max_new_tokens}tokens")
        if self._own_template:
            parts.append(f"template-{self._own_template.digest[:8]}")
        return "-".join([*parts, f"{self.settings.num_fewshot}shot"])

    @property
    def generates(self) -> bool:
        return self.name != "choice-logprob"

    @property
    def max_new_tokens(self) -> int:
        return self.settings.max_new_tokens or _ROOM[self.name]

    def stop(self, is_chat: bool) -> tuple[str, ...]:
        """Texts that end an answer once something visible was written; in a chat the model ends its turn itself."""
        return () if is_chat and self.name != "gestalt" else ("\n",)

    def asks(self, item: Item, language: str) -> bool:
        """Whether the protocol puts this item at all; gestalt leaves out what its harness leaves out."""
        return self.name != "gestalt" or is_asked(item, language)

    def prompt(self, item: Item, demonstrations: Sequence[Item], language: str, chat: ChatTemplate | None) -> Prompt:
        """The prompt of an item, in bytes that depend on nothing else."""
        turns = [(self._question(demo, language), self._gold(demo)) for demo in demonstrations]
        system = None
        if not self._templates:
            system = _KASAI_SYSTEM[language] if self.name == "kasai" else wording.system(language)
        question = self._question(item, language)
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
        return Prompt(text, self._continuations(item, text), is_chat=chat is not None)

    def _continuations(self, item: Item, text: str) -> tuple[str, ...]:
        if self.generates:
            return ()
        values = item.letters if self.settings.continuation == "letter" else wording.scored_choices(item)
        return tuple(wording.answer_gap(text) + value for value in values)

    def _gold(self, item: Item) -> str:
        return wording.answer(item, as_letters=self.generates or self.settings.continuation == "letter")

    def _question(self, item: Item, language: str) -> str:
        if self._templates:
            return self._templates[language].render(item)
        if self.name == "kasai":
            return _kasai_question(item, language)
        return wording.question(item, language, asks_letter=self.generates)


class PromptTemplate:
    """A prompt template with {{instruction}} (the question) and {{input}} (choice texts joined by ",").

    Also given: question, choices, letters, context, num_answers. Rendered in a sandbox; keeps its last newline.

    source  Jinja source; Liquid's {{name}} means the same
    name    how errors call the template, for instance its file
    digest  sha256 of the source

    Raises ValueError for a source that is no template, names an unknown variable or has no place for the question.
    """

    def __init__(self, source: str, name: str = "template"):
        self.name = name
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
        try:
            used = meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals)
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{name}, line {error.lineno}: {error.message}; expected Jinja or Liquid braces."
            ) from None
        for variable in sorted(used - set(_VARIABLES)):
            near = difflib.get_close_matches(variable, _VARIABLES, n=1)
            hint = f"did you mean {{{{{near[0]}}}}}? " if near else ""
            raise ValueError(f"{name}: got {{{{{variable}}}}}; {hint}The variables are {', '.join(_VARIABLES)}.")
        if not used & {"instruction", "question"}:
            raise ValueError(f"{name}: got no {{{{instruction}}}}; a template must say where the question goes.")

    @classmethod
    def read(cls, path: str | Path) -> "PromptTemplate":
        """The template in a file. Raises FileNotFoundError or ValueError naming the file."""
        try:
            return cls(Path(path).read_bytes().decode("utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
        except OSError as error:
            raise FileNotFoundError(f"{path}: {error.strerror}; expected a file with a prompt template.") from None

    def render(self, item: Item) -> str:
        values = (_stem(item), ",".join(item.choices), item.question, list(item.choices), list(item.letters))
        try:
            return self._template.render(dict(zip(_VARIABLES, (*values, item.context, item.num_answers), strict=True)))
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"{self.name}: item {item.id}: {type(error).__name__}: {error}; correct the template."
            ) from None


def choose_demonstrations(task: LoadedTask, item: Item, count: int, seed: int, fixed: bool) -> list[Item]:
    """The worked examples for an item, never the same question, be it under another id.

    fixed    the first `count` of the pool in its order (the IgakuQA authors' three); else a choice by seed that is the
             same for every item of the task, with one in reserve for the item that is itself among them, so that the
             examples are a prefix all items share
    Raises ValueError when the pool is too small.
    """
    if count == 0:
        return []
    pool = list(task.fewshot)
    reserve = 1 if task.pool_is_test else 0
    if len(pool) < count + reserve:
        raise ValueError(
            f"task {task.name}: got num_fewshot={count}, its pool holds {len(pool)} demonstrations"
            f"{' (one is kept in reserve)' if reserve else ''}; ask for fewer."
        )
    chosen = pool[: count + reserve] if fixed else random.Random(f"{seed}:{task.name}").sample(pool, count + reserve)
    # not by id: a set may repeat a question under another one, and a pool of its own may use ids again
    return [demo for demo in chosen if demo.asked != item.asked][:count]


def _stem(item: Item) -> str:
    return f"{item.context}\n{item.question}" if item.context else item.question


def _kasai_question(item: Item, language: str) -> str:
    if language == "ja":
        text = f"問題: {_stem(item)}"
        ask = f"必ずa,b,c,d,eの中からちょうど{item.num_answers}個選んでください。\n答え:"
    else:
        text = f"Problem: {_stem(item)}"
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
