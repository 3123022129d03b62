"""Chat templates: the Jinja program of a checkpoint that writes messages the way the model was trained to read them.

A template is code from a stranger's file. It runs in Jinja's sandbox, where values cannot be changed and attributes
with underscores do not exist; whatever it does wrong, and what it refuses by `raise_exception`, is a ValueError.
Names and filters are those that transformers gives to templates: messages, add_generation_prompt, bos_token,
eos_token, tools and documents (None here), raise_exception, strftime_now, tojson without HTML escaping, the tag
{% generation %}, loop controls; blocks leave no blank lines.

The text usually begins with BOS itself, so encode it by `tokenizer.encode(text, bos=False, special=True)`.

Some models were trained without a system role; their templates refuse one or drop it. Its text then opens the first
user message, two newlines before the rest:

  [system "Answer in letters.", user "Which?"]   ->   [user "Answer in letters.\\n\\nWhich?"]
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

_ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """A checkpoint's chat template.

    source     Jinja source
    bos_token, eos_token   text of these tokens, None where the tokenizer has none
    name       how errors call the template, for instance its file
    now        the moment that `strftime_now` tells; None is the clock. Templates of the Llama 3 kind write the date
               into the prompt: a run that must be repeatable keeps the moment and gives it again.

    Raises ValueError if the source is not a Jinja template.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None,
        eos_token: str | None,
        *,
        name: str = "chat template",
        now: datetime | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self._tokens = {
            key: text for key, text in (("bos_token", bos_token), ("eos_token", eos_token)) if text is not None
        }
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: (now or datetime.now()).strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"{name}, line {error.lineno}: {error.message}; expected a Jinja template: correct it, or run without "
                "one (--chat-template none)."
            ) from error
        self._takes_system: bool | None = None

    def supports_system(self) -> bool:
        """Whether a system message reaches the text: tried once with a message of its own."""
        if self._takes_system is None:
            mark = "system-role-probe"
            probe = [{"role": "system", "content": mark}, {"role": "user", "content": "user"}]
            try:
                self._takes_system = mark in self._run(probe, add_generation_prompt=True)
            except ValueError:
                self._takes_system = False
        return self._takes_system

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Text of a conversation.

        messages               {"role": "system" | "user" | "assistant", "content": text}, at least one
        add_generation_prompt  ends with the opening of the assistant's turn

        Raises ValueError for a malformed message and for whatever the template refuses.
        """
        checked = [_message(message, number) for number, message in enumerate(messages)]
        if not checked:
            raise ValueError("render: got no messages, expected at least one; give a user message.")
        if checked[0]["role"] == "system" and not self.supports_system():
            checked = _fold_system(checked)
        return self._run(checked, add_generation_prompt)

    def _run(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"{self.name}: {type(error).__name__}: {error}; got the roles {[m['role'] for m in messages]}, "
                "expected a conversation that this template accepts: change the messages, or run without it "
                "(--chat-template none)."
            ) from error


def _message(message: Mapping[str, str], number: int) -> dict[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES or not isinstance(content, str) or len(message) != 2:
        raise ValueError(
            f"render: message {number} is {dict(message)!r}, expected a role of {', '.join(_ROLES)} and a content of "
            "type str, nothing else; correct the message."
        )
    return {"role": role, "content": content}


def _fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The first message's text put in front of the first user message."""
    system, rest = messages[0]["content"], messages[1:]
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system}, *rest]
    return [{"role": "user", "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]


class _Sandbox(ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja's own answer prints as empty text and fails only at the next attribute
        raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is not allowed")


class _GenerationTag(Extension):
    """{% generation %} … {% endgeneration %} marks what the assistant says; only training asks for the mark."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
