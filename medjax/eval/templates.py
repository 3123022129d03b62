"""Prompt templates by file: wording of the question that replaces a protocol's own.

A template is Jinja (Liquid's plain braces mean the same), filled in a sandbox. Published files of the medpalm and
alpaca kind name {{instruction}} and {{input}}; {{choices}} and {{letters}} serve those that show "(A) ..." lines.
"""

import difflib
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from medjax.data.qa import Item

_VARIABLES = ("instruction", "input", "question", "choices", "letters", "context", "num_answers")


class PromptTemplate:
    """A prompt template with {{instruction}} (the question) and {{input}} (choice texts joined by ",").

    Also given: question, choices, letters, context, num_answers. Rendered in a sandbox; keeps its last newline.

    source  Jinja source; Liquid's {{name}} means the same
    name    how errors call the template, for instance its file
    digest  sha256 of the source

    Raises ValueError for a source that is no template, names an unknown variable or has no place for the question.
    """

    def __init__(self, source: str, name: str = "template"):
        self.name, self.source = name, source
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        environment = ImmutableSandboxedEnvironment(keep_trailing_newline=True, undefined=StrictUndefined)
        try:
            used = meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals)
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{name}, line {error.lineno}: {str(error.message).rstrip('.')}, expected Jinja or Liquid braces; "
                "close what is open."
            ) from None
        for variable in sorted(used - set(_VARIABLES)):
            near = difflib.get_close_matches(variable, _VARIABLES, n=1)
            advice = (
                f"did you mean {{{{{near[0]}}}}}?"
                if near
                else "drop it; worked examples (--num-fewshot) stand before the question by themselves."
            )
            raise ValueError(f"{name}: got {{{{{variable}}}}}, expected some of {', '.join(_VARIABLES)}; {advice}")
        if not used & {"instruction", "question"}:
            raise ValueError(
                f"{name}: got no {{{{instruction}}}}, expected it or {{{{question}}}}; write it where the question is."
            )

    @classmethod
    def read(cls, path: str | Path) -> "PromptTemplate":
        """The template in a file, without a byte order mark. Raises FileNotFoundError or ValueError naming the file."""
        try:
            return cls(Path(path).read_bytes().decode("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
        except OSError as error:
            raise FileNotFoundError(f"{path}: {error.strerror}; expected a file with a prompt template.") from None

    def shows_choices(self, item: Item) -> bool:
        """Whether the template puts choices into the item's prompt, or the prompt holds all of them without that.

        A question may name every choice itself; one alone proves nothing: "1" stands in many a question. Case and
        blanks do not matter.
        """
        marks = tuple(f"\ue000{letter}\ue001" for letter in item.letters)
        marked = _plain(self.render(replace(item, choices=marks)))
        if any(mark in marked for mark in marks):
            return True
        prompt = _plain(self.render(item))
        return all(_plain(choice) in prompt for choice in item.choices)

    def shows_letters(self, item: Item) -> bool:
        """Whether the letters are written by the template, or stand before the choices, as in "(A) fever"."""
        marks = [f"\ue000{letter}\ue001" for letter in item.letters]
        filled = self.render(item, marks)
        if any(mark in filled for mark in marks):
            return True
        prompt = unicodedata.normalize("NFKC", self.render(item)).casefold()
        choices = (unicodedata.normalize("NFKC", choice).strip().casefold() for choice in item.choices)
        return all(
            re.search(rf"(?<![a-z]){letter}[^a-z0-9\n]{{1,4}}{re.escape(choice)}", prompt)
            for letter, choice in zip(item.letters, choices, strict=True)
        )

    def render(self, item: Item, letters: Sequence[str] | None = None) -> str:
        """The item's prompt; letters: what stands for its own."""
        shown = list(item.letters if letters is None else letters)
        values = (stem(item), ",".join(item.choices), item.question, list(item.choices), shown)
        try:
            return self._template.render(dict(zip(_VARIABLES, (*values, item.context, item.num_answers), strict=True)))
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"{self.name}: item {item.id}: {type(error).__name__}: {error}; correct the template."
            ) from None


def labels(templates: Sequence[PromptTemplate]) -> tuple[str, ...]:
    """A short name of each: its file's name without ending, and the beginning of its digest where names repeat.

    Raises ValueError where two have the same content.
    """
    for digest, times in Counter(template.digest for template in templates).items():
        if times > 1:
            names = ", ".join(template.name for template in templates if template.digest == digest)
            raise ValueError(f"template: got {names}, which have the same content; name each template once.")
    stems = [Path(template.name).stem for template in templates]
    return tuple(
        stem if stems.count(stem) == 1 else f"{stem}-{template.digest[:8]}"
        for stem, template in zip(stems, templates, strict=True)
    )


def stem(item: Item) -> str:
    """The question of an item, after its context and a newline where there is one."""
    return f"{item.context}\n{item.question}" if item.context else item.question


def _plain(text: str) -> str:
    return "".join(text.casefold().split())
