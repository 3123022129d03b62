"""Records as text: which template writes the prompt, and which part of the text the model is trained to say.

A `Template` turns a record into a `Rendered` text, cut into segments that count for the loss or do not:

  chat      the chat template of the checkpoint. What counts is what the model itself would have to write: from the end
            of the generation prompt to the end-of-turn token, of every assistant turn

                <|im_start|>user\\nWhich?<|im_end|>\\n<|im_start|>assistant\\n | a<|im_end|> | \\n
                not counted                                                   counted       not counted

  plain     prompt and response with nothing between them
  alpaca    "### Instruction: … ### Input: … ### Response:" (tatsu-lab/stanford_alpaca)
  jallm     Japanese, "### 指示: … ### 入力: … ### 返答:" (retarfi/jallm@caae802, the form of JMedLoRA's OpenCALM)
  swallow   Japanese, "### 指示: … ### 入力: … ### 応答:" (Swallow, llm-jp)

The last four end in EOS, where the tokenizer has one; a chat template writes its own end of turn. Plain text is written
as it is under every template, all of it counted, EOS at its end.

Special tokens typed inside a record are text. In a chat they could not be told from real ones, so they are refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from medjax.data.text.chat import ChatTemplate
from medjax.data.text.records import Conversation, Message, Pair, Passage, Record
from medjax.data.text.tokenizer import Tokenizer


class Segment(NamedTuple):
    """A stretch of text, and whether its tokens are targets of the loss."""

    text: str
    counted: bool


@dataclass(frozen=True)
class Rendered:
    """A record as text.

    segments  in order; together they are the whole text
    is_chat   special tokens written in the text are such, and BOS is among them where the model wants it
    ends      EOS follows; it counts as the last segment does
    """

    segments: tuple[Segment, ...]
    is_chat: bool
    ends: bool


@dataclass(frozen=True)
class _Form:
    """A prompt with and without an input; {instruction} and {input} stand where their texts go."""

    with_input: str
    without_input: str

    def prompt(self, pair: Pair) -> str:
        form = self.with_input if pair.input else self.without_input
        before, after = form.split("{instruction}")
        return before + pair.instruction + after.replace("{input}", pair.input)


_FORMS = {
    "plain": _Form("{instruction}\n\n{input}", "{instruction}"),
    "alpaca": _Form(
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    "jallm": _Form(
        "以下はタスクを説明する指示とさらなる文脈を適用する入力の組み合わせです。要求を適切に満たすような返答を書いてください。"
        "\n\n### 指示:\n{instruction}\n\n### 入力:\n{input}\n\n### 返答:\n",
        "以下はタスクを説明する指示です。要求を適切に満たすような返答を書いてください。"
        "\n\n### 指示:\n{instruction}\n\n### 返答:\n",
    ),
    "swallow": _Form(
        "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
        "\n\n### 指示:\n{instruction}\n\n### 入力:\n{input}\n\n### 応答:\n",
        "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
        "\n\n### 指示:\n{instruction}\n\n### 応答:\n",
    ),
}
NAMES = ("chat", *_FORMS)
_TODAY = datetime(2024, 7, 26)  # the date that templates of the Llama 3 kind write when they cannot ask


class Template:
    """How records become text.

    name   one of NAMES
    chat   the checkpoint's template, needed for "chat" only
    specials  texts of the special tokens (`Tokenizer.special_texts`), looked for in chats

    Raises ValueError for an unknown name, and for "chat" without a chat template.
    """

    def __init__(self, name: str, *, chat: ChatTemplate | None = None, specials: Iterable[str] = ()) -> None:
        if name not in NAMES:
            raise ValueError(f"template: got {name!r}, expected one of {', '.join(NAMES)}; choose one of them.")
        if name == "chat" and chat is None:
            raise ValueError(
                "template: got chat, but this tokenizer has no chat template; expected one in its files: choose one of "
                f"{', '.join(_FORMS)}, or take the instruction-tuned checkpoint."
            )
        self.name = name
        self._chat = chat if name == "chat" else None
        self._specials = sorted(specials, key=len, reverse=True)

    @property
    def source(self) -> str:
        """The whole of what decides the text, for digests."""
        if self._chat is not None:
            return self._chat.source
        form = _FORMS[self.name]
        return f"{form.with_input}\0{form.without_input}"

    def render(self, record: Record) -> Rendered:
        """Write a record as text.

        Raises ValueError naming the record: a special token inside a chat, a conversation that the template refuses or
        does not write turn by turn, a conversation of several turns under a template that has one.
        """
        if isinstance(record, Passage):
            return Rendered((Segment(record.text, True),), is_chat=False, ends=True)
        if self._chat is None:
            pair = _as_pair(record, self.name)
            return Rendered(
                (Segment(_FORMS[self.name].prompt(pair), False), Segment(pair.response, True)), is_chat=False, ends=True
            )
        conversation = _as_conversation(record)
        if found := [special for special in self._specials if any(special in text for text in record.texts)]:
            raise ValueError(
                f"{record.where}: got the text {', '.join(found)}, special tokens of this model, expected none inside "
                f"a chat; clean the record, or train with another template ({', '.join(_FORMS)})."
            )
        return Rendered(tuple(self._turns(conversation, self._chat)), is_chat=True, ends=False)

    def _turns(self, conversation: Conversation, chat: ChatTemplate) -> Iterable[Segment]:
        messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
        if messages[0]["role"] == "assistant":
            raise ValueError(
                f"{conversation.where}: got a conversation that the assistant opens, expected a system or user message "
                "first; remove its first message, or give it one to answer."
            )
        try:
            whole = chat.render(messages, add_generation_prompt=False)
            written = 0
            for number, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                before = chat.render(messages[:number], add_generation_prompt=True)
                after = chat.render(messages[: number + 1], add_generation_prompt=False)
                if not (whole.startswith(after) and after.startswith(before) and len(before) >= written):
                    raise ValueError(
                        f"{chat.name} writes the conversation up to message {number + 1} differently once more follows "
                        "it, so what the assistant says cannot be found in the text; expected one that writes turn "
                        "after turn: use another template, or cut the conversation after its first answer."
                    )
                end = self._end_of_turn(after, len(before), message["content"])
                yield Segment(whole[written : len(before)], False)
                yield Segment(whole[len(before) : end], True)
                written = end
        except ValueError as error:
            raise ValueError(f"{conversation.where}: {error}") from error
        if written < len(whole):
            yield Segment(whole[written:], False)

    def _end_of_turn(self, text: str, start: int, content: str) -> int:
        """Index after the last special token that follows the content; the text's end where none does."""
        said = text.find(content.strip(), start)
        if said < 0:
            return len(text)
        said += len(content.strip())
        ends = [at + len(special) for special in self._specials if (at := text.rfind(special, said)) >= 0]
        return max(ends, default=len(text))


def load_template(name: str, tokenizer: Tokenizer) -> Template:
    """The template of this name for a tokenizer; "chat" is its own. Raises ValueError as `Template` does.

    A chat template that writes today's date is told the same day every day: a run resumed tomorrow has the same tokens.
    """
    chat = None
    if name == "chat" and tokenizer.chat_template is not None:
        chat = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token, now=_TODAY)
    return Template(name, chat=chat, specials=tokenizer.special_texts)


def _as_conversation(record: Conversation | Pair) -> Conversation:
    if isinstance(record, Conversation):
        return record
    turns = (Message("user", record.question), Message("assistant", record.response))
    return Conversation(record.id, record.where, turns)


def _as_pair(record: Conversation | Pair, template: str) -> Pair:
    """A conversation of one question and one answer as a pair; a system message opens the instruction."""
    if isinstance(record, Pair):
        return record
    roles = [message.role for message in record.messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise ValueError(
            f"{record.where}: got a conversation of {', '.join(roles)}, expected user, assistant (a system message may "
            f"come first), since the template {template} has one turn; cut it, or use the template chat."
        )
    return Pair(record.id, record.where, record.question, "", record.messages[-1].content)
