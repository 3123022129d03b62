"""What is asked: the items of a task under one protocol, each once or several times.

An item is asked under every shift of its choices (rotate), with every template, and as often as answers are drawn, in
this order of nesting; mostly that is one ask an item. The outputs come back one an ask, in the same order.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from medjax.data.exams.tasks import LoadedTask
from medjax.data.qa import Item
from medjax.data.text.chat import ChatTemplate
from medjax.eval.demonstrations import Demonstrations
from medjax.eval.metrics import check
from medjax.eval.protocols import Prompt, Protocol
from medjax.eval.record import sha256_text
from medjax.eval.rotation import Order, orders, shown
from medjax.eval.settings import EvalSettings
from medjax.report import drawing


@dataclass(frozen=True)
class Ask:
    """One question to the model.

    item      number of the item
    order     which choice of the item is shown at each letter
    sample    which of the answers drawn with this prompt
    template  name of the wording, "" for the protocol's own
    """

    item: int
    prompt: Prompt
    order: Order
    sample: int = 0
    template: str = ""


@dataclass(frozen=True)
class Evaluation:
    """One task under one protocol: what is asked, in item order.

    asks     in item order; () until the model is loaded, whose chat template they need
    unasked  how many items the protocol leaves out
    variant  "base" or "adapter" in a run that grades both, else ""
    """

    task: LoadedTask
    protocol: Protocol
    items: tuple[Item, ...]
    asks: tuple[Ask, ...]
    unasked: int
    variant: str = ""

    @property
    def id(self) -> str:
        ending = "_adapter" if self.variant == "adapter" else ""
        return f"{self.task.name}_{self.task.language}_{self.protocol.id}{ending}"

    @cached_property
    def by_item(self) -> list[list[int]]:
        """Numbers of the asks of every item."""
        found: list[list[int]] = [[] for _ in self.items]
        for number, ask in enumerate(self.asks):
            found[ask.item].append(number)
        return found

    @cached_property
    def max_new_tokens(self) -> int:
        """New tokens of an answer to any of the items."""
        return self.protocol.room(self.items)

    @cached_property
    def prompt_digest(self) -> str:
        """sha256 over every prompt and continuation."""
        prompts = [[ask.prompt.text, *ask.prompt.continuations] for ask in self.asks]
        return sha256_text(json.dumps(prompts, ensure_ascii=False))

    def shown(self, ask: Ask) -> Item:
        """The item as an ask shows it."""
        return shown(self.items[ask.item], ask.order)


def choose_items(task: LoadedTask, protocol: Protocol, settings: EvalSettings) -> tuple[Evaluation, Demonstrations]:
    """An evaluation without its asks, and where its worked examples come from.

    Raises ValueError where the protocol asks nothing, where the items cannot be graded, where a template hides the
    choices of an item whose letters are asked for, or the pool of examples is too small.
    """
    asked = [item for item in task.items if protocol.asks(item, task.language)]
    items = tuple(asked[: settings.task.limit])
    if not items:
        raise ValueError(
            f"task {task.name}: got {drawing.counted(len(task.items), 'item')}, of which protocol {protocol.name} asks "
            "none (docs/protocols.md says which it leaves out); choose another protocol for this set."
        )
    check(task.metrics, items)
    if protocol.picks_letters:
        for template, item in product(protocol.templates, items):
            if item.kind == "choice" and not template.shows_choices(item):
                raise ValueError(
                    f"{template.name}: task {task.name}: item {item.id}: got a prompt without its "
                    f"{len(item.choices)} choices, while protocol {protocol.id} asks for their letters; write a "
                    "line for each: {% for letter in letters %}{{letter}}. "
                    "{{choices[loop.index0]}}{{'\\n'}}{% endfor %}"
                )
    p = settings.protocol
    shots = Demonstrations(task, p.num_fewshot, p.fewshot, settings.seed)
    return Evaluation(task, protocol, items, asks=(), unasked=len(task.items) - len(asked)), shots


def ask(
    evaluation: Evaluation, shots: Demonstrations, chat: ChatTemplate | None, specials: Collection[str] = ()
) -> Evaluation:
    """The evaluation with its asks.

    chat      template of the model's conversations, None: plain text
    specials  texts that the tokenizer reads as special tokens, inside a chat and in templates that write some
    Raises ValueError for an item that would write special tokens into such a prompt.
    """
    task, protocol = evaluation.task, evaluation.protocol
    if protocol.name == "gestalt":
        chat = None  # its harness never uses one
    examples = [shots.of(item) for item in evaluation.items]
    if chat or any(protocol.writes(specials, number) for number in range(len(protocol.templates))):
        pairs = zip(evaluation.items, examples, strict=True)
        every = {id(item): item for asked, demonstrations in pairs for item in (asked, *demonstrations)}
        _check_plain(task, every.values(), specials, explained=protocol.reasons)
    asks = []
    for number, (item, demonstrations) in enumerate(zip(evaluation.items, examples, strict=True)):
        for order in orders(item, protocol.settings.rotate):
            for which, name in enumerate(protocol.wordings):
                prompt = protocol.prompt(shown(item, order), demonstrations, task.language, chat, which, specials)
                asks += [Ask(number, prompt, order, draw, name) for draw in range(protocol.settings.samples)]
    return replace(evaluation, asks=tuple(asks))


def seed_of(seed: int, item: str, sample: int) -> int:
    """The seed of a drawn answer, 0 to 2^31 - 1: of the run's seed, the item and the number of the draw alone."""
    digest = hashlib.sha256(json.dumps([seed, item, sample]).encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _check_plain(task: LoadedTask, items: Iterable[Item], specials: Collection[str], *, explained: bool) -> None:
    """Such a text is read with its special tokens: an item that holds one could end its turn and answer itself."""
    tokens = sorted(specials)
    for item in items:
        text = "\n".join((item.context, item.question, *item.choices, item.explanation if explained else ""))
        if found := [token for token in tokens if token in text]:
            raise ValueError(
                f"task {task.name}: item {item.id}: got the text {', '.join(found)}, special tokens of this model, "
                "expected none inside a chat; clean the item, or ask without the template (--chat-template none)."
            )
