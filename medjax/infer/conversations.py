"""Prompts as users write them -> conversations -> the tokens that a model continues.

  a line of text                                       {"role": "user", "content": <the line>}
  {"prompt": "Which vitamin ...?"}                     the same, where the text holds newlines
  {"messages": [{"role": "user", "content": "..."}]}   a conversation, which ends with a user message

Further keys of an object (an id, the answer of a training set) are left alone. With a chat template a conversation is
rendered by it, otherwise its texts are joined by newlines, as `medjax.eval` does.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medjax.infer.language_model import LanguageModel

Conversation = list[dict[str, str]]


def read_conversations(text: str, where: str, *, as_json: bool) -> list[Conversation]:
    """The conversations in a text, one a line; blank lines are skipped.

    where    what errors call the text, for instance its file
    as_json  every line is an object; otherwise lines are prompts as they stand

    Raises ValueError naming the line, and for a text without any prompt.
    """
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            found.append(_conversation(line, f"{where}, line {number}") if as_json else asked(line.rstrip("\r")))
    if not found:
        raise ValueError(f"{where}: got no prompt, expected one a line; write what the model shall answer.")
    return found


def asked(prompt: str) -> Conversation:
    """A conversation of one user message."""
    return [{"role": "user", "content": prompt}]


def with_system(conversation: Conversation, system: str | None) -> Conversation:
    """The conversation opened by a system text, unless it has one of its own."""
    if not system or conversation[0]["role"] == "system":
        return conversation
    return [{"role": "system", "content": system}, *conversation]


def encode(model: LanguageModel, conversation: Conversation, where: str, *, room: int) -> tuple[int, ...]:
    """Token ids of the prompt.

    where  what errors call the conversation
    room   new tokens that must fit behind it

    Raises ValueError for a prompt that is too long, and for one that writes special tokens into a chat.
    """
    if model.chat:
        _check_plain(conversation, model.tokenizer.special_texts, where)
        ids = model.tokenizer.encode(model.chat.render(conversation), bos=False, special=True)
    else:
        ids = model.tokenizer.encode("\n".join(message["content"] for message in conversation))
    context = model.decoder.config.max_length
    if len(ids) + room > context:
        left = context - len(ids)
        do = f"lower --max-new-tokens to {left} or less" if left > 0 else "shorten it, or take a longer context"
        raise ValueError(
            f"{where}: got {len(ids)} tokens and {room} of an answer, expected at most the model's context of "
            f"{context}; {do}."
        )
    return tuple(ids)


def _check_plain(conversation: Sequence[Mapping[str, str]], specials: Iterable[str], where: str) -> None:
    """A chat's text is read with its special tokens: a message that holds one could end its turn and answer itself."""
    found = sorted(token for token in specials if any(token in message["content"] for message in conversation))
    if found:
        raise ValueError(
            f"{where}: got the text {', '.join(found)}, special tokens of this model, expected none inside a chat; "
            "remove them, or ask without the template (--chat-template none)."
        )


def _conversation(line: str, where: str) -> Conversation:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); write one object a line, or plain text.") from None
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        got = ", ".join(row) or "no key" if isinstance(row, dict) else f"a JSON {type(row).__name__}"
        raise ValueError(f'{where}: got {got}, expected an object with either "prompt" or "messages"; write one.')
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise ValueError(f"{where}: prompt: got {row['prompt']!r}, expected text; write what shall be answered.")
        return asked(row["prompt"])
    return _messages(row["messages"], where)


def _messages(messages: Any, where: str) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: messages: got {messages!r}, expected a list of messages; write at least one.")
    for number, message in enumerate(messages):
        is_message = isinstance(message, dict) and set(message) == {"role", "content"}
        if not is_message or message["role"] not in ("system", "user", "assistant"):
            raise ValueError(
                f"{where}: messages: message {number}: got {message!r}, expected a role (system, user or assistant) "
                "and a content, nothing else; correct the message."
            )
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(
                f"{where}: messages: message {number}: got the content {message['content']!r}, expected text; "
                "write some, or drop the message."
            )
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"{where}: messages: got a conversation that ends with the {messages[-1]['role']}, expected a user's "
            "message last; drop what follows it, and the model answers that."
        )
    return messages
