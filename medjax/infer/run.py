"""Answering prompts, from settings to text: the story that `python -m medjax.infer` tells.

read prompts -> load model and adapter -> tokens, which must fit -> generate, printed as it comes -> what it took
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medjax.infer.conversations import Conversation, asked, encode, read_conversations, with_system
from medjax.infer.generator import Generation, Generator
from medjax.infer.language_model import LanguageModel, load_model
from medjax.infer.settings import EngineSettings, InferSettings, ModelSettings
from medjax.report.progress import ProgressBar
from medjax.store.adapters import base_name

_UNFINISHED = "\ufffd"  # bytes of a character whose rest is not yet there


def print_answers(settings: InferSettings) -> None:
    """Answer every prompt on standard output.

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    conversations = [with_system(c, settings.system) for c in _conversations(settings)]
    model = load_base(settings.model, settings.engine, say=_say, progress=True)
    if settings.model.adapter:
        model = model.with_adapter(settings.model.adapter)
    many = len(conversations) > 1
    prompts = [
        encode(model, conversation, f"prompt {number}" if many else "prompt", room=settings.max_new_tokens)
        for number, conversation in enumerate(conversations, 1)
    ]
    start, width = time.perf_counter(), min(settings.engine.batch_size, len(prompts))
    generator = Generator(
        model.programs,
        model.tokenizer,
        batch_size=width,
        row_tokens=settings.engine.row_tokens,
        int8_cache=settings.model.kv_cache == "int8",
    )
    stream = _Stream() if not many and not settings.json else None
    answers = _InOrder(lambda i, answer: _print(conversations[i], answer, settings.json)) if not stream else None
    found = generator.generate(
        prompts,
        max_new_tokens=settings.max_new_tokens,
        on_text=stream.show if stream else None,
        on_generations=answers.take if answers else None,
    )
    if stream:
        stream.end(found[0].text)
    _tell(settings, found, time.perf_counter() - start)


def load_base(
    model: ModelSettings, engine: EngineSettings, *, say: Callable[[str], None], progress: bool
) -> LanguageModel:
    """The model of the settings without its adapter, which must be there, however.

    say       called with one line for the user at a time
    progress  show a progress bar on stderr

    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    if model.adapter:
        base_name(model.adapter)  # raises where there is no adapter; the rest is checked against the model
    say(f"loading {model.name}")
    with ProgressBar(progress, "weights", "tensor") as bar:
        return load_model(
            model.name,
            revision=model.revision,
            dtype=model.dtype,
            quantisation=model.quantisation,
            chat_template=model.chat_template,
            mesh=engine.mesh,
            backend=engine.backend,
            progress=bar.reach,
        )


def _conversations(settings: InferSettings) -> list[Conversation]:
    if settings.prompt is not None:
        return [asked(settings.prompt)]
    if settings.file is None and sys.stdin.isatty():
        raise ValueError(
            'prompt: got none; write it as the first argument (python -m medjax.infer "..."), name a --file, or pipe '
            "prompts in."
        )
    if settings.file in (None, "-"):
        text = sys.stdin.read()
        return read_conversations(text, "standard input", as_json=text.lstrip().startswith("{"))
    path = Path(str(settings.file)).expanduser()
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    except OSError as error:
        raise FileNotFoundError(f"{path}: {error.strerror}; expected a file with one prompt a line.") from None
    return read_conversations(text, str(path), as_json=path.suffix == ".jsonl")


class _Stream:
    """Prints one answer as it grows; characters that are not whole wait for their rest."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, index: int, text: str) -> None:
        whole = text.rstrip(_UNFINISHED)
        if len(whole) > self._shown:
            print(whole[self._shown :], end="", flush=True)
            self._shown = len(whole)

    def end(self, text: str) -> None:
        print(text[self._shown :], flush=True)


class _InOrder:
    """Hands answers on in the order of their prompts, as soon as all before are there."""

    def __init__(self, give: Callable[[int, Generation], None]):
        self._give = give
        self._waiting: dict[int, Generation] = {}
        self._next = 0

    def take(self, new: Mapping[int, Generation]) -> None:
        self._waiting |= new
        while self._next in self._waiting:
            self._give(self._next, self._waiting.pop(self._next))
            self._next += 1


def _print(conversation: Conversation, answer: Generation, as_json: bool) -> None:
    if as_json:
        row: dict[str, Any] = {"messages": conversation, "text": answer.text, "tokens": len(answer.tokens)}
        print(json.dumps({**row, "finish": answer.finish}, ensure_ascii=False), flush=True)
    else:
        print(f"> {conversation[-1]['content']}\n{answer.text}\n", flush=True)


def _tell(settings: InferSettings, answers: list[Generation], seconds: float) -> None:
    made = sum(len(answer.tokens) for answer in answers)
    _say(f"{made} token{'s' if made != 1 else ''} in {seconds:.1f} s, compiling included")
    if cut := sum(answer.finish == "length" for answer in answers):
        which = "the answer was" if len(answers) == 1 else f"{cut} of {len(answers)} answers were"
        _say(f"{which} cut off at {settings.max_new_tokens} new tokens; --max-new-tokens gives more room")
    if settings.model.adapter:
        _say("next: the same without --adapter shows the base; python -m medjax.eval --adapter grades both")
    else:
        _say("next: python -m medjax.eval grades this model; --file answers many prompts at once")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
