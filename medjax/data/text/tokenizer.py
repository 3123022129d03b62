"""Tokenizers of real checkpoints behind one interface, and the rule that cuts (context, continuation) pairs.

A `Tokenizer` is one of three: `tokenizers` (tokenizer.json, or the byte-level BPE of a GGUF file), `sentencepiece`
(tokenizer.model) and score-greedy merges (the SentencePiece vocabulary of a GGUF file, llama2.c; see vocabulary.py).

BOS       `encode` puts it in front where the checkpoint says so (`add_bos`), never twice. A text made by a chat
          template holds what the model wants already: `encode(text, bos=False, special=True)`.
Specials  By default "<|im_end|>" typed inside an exam question is ordinary text, so that no item can end a turn or
          fake one. `special=True`, meant for rendered chat text, recognises it as the special token. (Tokens that a
          vocabulary calls user-defined are always recognised: that is what the model saw in training.)
EOS       is never added: neither scoring nor generation wants it after a prompt.
Losses    A byte-level vocabulary without all 256 bytes (SmolLM2 lacks 21) drops the missing ones silently, a
          SentencePiece model without byte pieces gives its unknown id: both as their own libraries do.

Pairs     score(continuation | context) needs ids(context) to be the same for every continuation of a question, or
          nothing can be shared. Encoding the two apart would cost the model its usual spelling, encoding them
          together may merge across the boundary (the rule in Japanese, where no blank stands between them). Hence:

  1. whitespace at the end of the context moves to the front of the continuation;
  2. the context's ids are encode(context), whatever follows;
  3. if encode(context + continuation) starts with these ids, the continuation's ids are the rest: exactly what
     lm-evaluation-harness scores;
  4. else the continuation is encoded alone, without BOS and without the blank that SentencePiece models put in
     front, so decode(context ids + continuation ids) still gives the text back;
  5. a context without any id becomes [BOS], or [EOS] where there is none: a score needs something to stand on.

                    "最近の胸" + "痛"       alone [最近 の 胸] [痛], together [最近 の 胸痛]
                    context ids [最近 の 胸], continuation ids [痛]
"""

import codecs
import hashlib
import itertools
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from medjax.data.text.special_tokens import FolderSettings, SpecialIds, SpecialText, read_json

_PICKLES = (".bin", ".pkl", ".pickle", ".pt", ".pth", ".npy")
# A protobuf message may arrive in parts, later fields win: ModelProto.normalizer_spec (3) with add_dummy_prefix (3)
# and remove_extra_whitespaces (4) off
_NO_PREFIX = b"\x1a\x04\x18\x00\x20\x00"


class Tokenizer(ABC):
    """Text to token ids and back.

    vocab_size     ids are below it (a model's embedding may have more rows)
    bos_id, eos_ids, pad_id, add_bos   what the checkpoint says; eos_ids are all ids that end generation
    chat_template  Jinja source, None where the checkpoint has none
    digest         sha256 of vocabulary, merges, normaliser and special ids; the chat template is not part of it
    kind           "tokenizers", "sentencepiece" or "score-merge"
    """

    kind: str

    def __init__(self, vocab_size: int, ids: SpecialIds, chat_template: str | None, vocabulary: Any) -> None:
        self.vocab_size = vocab_size
        self.bos_id, self.eos_ids, self.pad_id, self.add_bos = ids.bos_id, ids.eos_ids, ids.pad_id, ids.add_bos
        self.chat_template = chat_template
        content = [self.kind, vocabulary, [ids.bos_id, ids.eos_ids, ids.pad_id, ids.add_bos]]
        self.digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def _ids(self, text: str, *, special: bool, prefix: bool) -> list[int]:
        """Ids without BOS; prefix False leaves out the blank that the vocabulary may want at the start of a text."""

    @abstractmethod
    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids; an unfinished last character is U+FFFD, ids beyond the vocabulary give nothing.

        For a growing list of ids `decode(ids).rstrip("\\ufffd")` only ever grows at its end.
        """

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """One token as the vocabulary spells it (byte-level "Ġin", SentencePiece "▁in", "<0x0A>")."""

    def to_json(self) -> str:
        """The text of a tokenizer.json that gives the same ids. Raises ValueError where this kind has none."""
        raise ValueError(f"tokenizer: got kind {self.kind}, which is no tokenizer.json; copy its own file instead.")

    @cached_property
    def special_texts(self) -> frozenset[str]:
        """Tokens that `encode(special=True)` recognises where they are written and the default takes for text."""
        silent = [i for i in range(self.vocab_size) if not self.decode([i])]
        texts = {self.decode([i], skip_special=False) for i in silent} - {""}
        return frozenset(text for text in texts if len(self.encode(text, bos=False, special=True)) == 1)

    @property
    def bos_token(self) -> str | None:
        return None if self.bos_id is None else self.token_text(self.bos_id)

    @property
    def eos_token(self) -> str | None:
        return self.token_text(self.eos_ids[0]) if self.eos_ids else None

    def encode(self, text: str, *, bos: bool | None = None, special: bool = False) -> list[int]:
        """Token ids of a text.

        bos      True or False; None means as the checkpoint says, unless the text itself begins with BOS
        special  True recognises special tokens written in the text (for text made by a chat template)
        """
        ids = self._ids(text, special=special, prefix=True)
        if bos is None:
            bos = self.add_bos and ids[:1] != [self.bos_id]
        if not bos:
            return ids
        if self.bos_id is None:
            raise ValueError("encode: got bos=True, but this tokenizer has no BOS token; leave bos=None.")
        return [self.bos_id, *ids]

    def encode_pair(
        self, context: str, continuation: str, *, bos: bool | None = None, special: bool = False
    ) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation, by the rule of this module's docstring."""
        context_ids, (continuation_ids,) = self.encode_pairs(context, [continuation], bos=bos, special=special)
        return context_ids, continuation_ids

    def encode_pairs(
        self, context: str, continuations: Sequence[str], *, bos: bool | None = None, special: bool = False
    ) -> tuple[list[int], list[list[int]]]:
        """Ids of a context, shared by all its continuations, and of each continuation.

        Raises ValueError for a continuation that is empty or has no token.
        """
        kept = context.rstrip()
        blank = context[len(kept) :]
        context_ids = self.encode(kept, bos=bos, special=special)
        continuation_ids = []
        for number, continuation in enumerate(continuations):
            together = self.encode(context + continuation, bos=bos, special=special)
            ids = together[len(context_ids) :]
            if together[: len(context_ids)] != context_ids:
                ids = self._ids(blank + continuation, special=special, prefix=False)
            if not continuation or not ids:
                raise ValueError(
                    f"encode_pairs: continuation {number} of {len(continuations)}, {continuation!r}, has no token "
                    f"after the context …{context[-20:]!r}; expected text of at least one token: leave that choice out."
                )
            continuation_ids.append(ids)
        return context_ids or [self._start_id()], continuation_ids

    def _start_id(self) -> int:
        start = self.bos_id if self.bos_id is not None else next(iter(self.eos_ids), None)
        if start is None:
            raise ValueError(
                "encode_pairs: got an empty context and a tokenizer with neither BOS nor EOS, expected one token to "
                "condition on; give a context."
            )
        return start


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizers` pipeline; its post-processor is not used, BOS is added by `encode`."""

    kind = "tokenizers"

    def __init__(
        self, pipeline: tokenizers.Tokenizer, ids: SpecialIds, chat_template: str | None, vocabulary: Any
    ) -> None:
        super().__init__(max(pipeline.get_vocab().values()) + 1, ids, chat_template, vocabulary)
        pipeline.no_truncation()
        pipeline.no_padding()
        self._pipeline = pipeline
        self._bare: tokenizers.Tokenizer | None = None
        self._byte = {pipeline.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        self._lock = threading.Lock()

    @cached_property
    def special_texts(self) -> frozenset[str]:
        return frozenset(token.content for token in self._pipeline.get_added_tokens_decoder().values() if token.special)

    def to_json(self) -> str:
        spec = json.loads(self._pipeline.to_str())
        return json.dumps(spec | {"post_processor": bos_template(self)}, ensure_ascii=False)

    def _ids(self, text: str, *, special: bool, prefix: bool) -> list[int]:
        with self._lock:  # encode_special_tokens is a switch of the pipeline, not an argument
            pipeline = self._pipeline if prefix else self._without_prefix()
            pipeline.encode_special_tokens = not special
            return pipeline.encode(text, add_special_tokens=False).ids

    def _without_prefix(self) -> tokenizers.Tokenizer:
        """The same pipeline, not adding a blank in front; made on first use, since most need no second one."""
        if self._bare is None:
            spec = json.loads(self._pipeline.to_str())
            steps = {name: _drop_prefix(spec[name]) for name in ("normalizer", "pre_tokenizer")}
            changed = any(steps[name] != spec[name] for name in steps)
            self._bare = tokenizers.Tokenizer.from_str(json.dumps(spec | steps)) if changed else self._pipeline
        return self._bare

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        ids = [int(token_id) for token_id in ids]
        unfinished = self._unfinished_bytes(ids)
        text = self._pipeline.decode(ids[: len(ids) - unfinished], skip_special_tokens=skip_special)
        return text + "\ufffd" if unfinished else text

    def _unfinished_bytes(self, ids: list[int]) -> int:
        """Byte tokens at the end that do not make a character yet.

        The library's byte-fallback decoder would give up the whole run of bytes for them, finished characters included.
        """
        run = bytes(self._byte[i] for i in itertools.takewhile(self._byte.__contains__, reversed(ids)))[::-1]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(run)
        return len(decoder.getstate()[0])

    def token_text(self, token_id: int) -> str:
        text = self._pipeline.id_to_token(token_id)
        if text is None:
            raise ValueError(f"token_text: got id {token_id}, expected one of the {self.vocab_size} of the vocabulary.")
        return text


def bos_template(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The post-processor of a tokenizer.json that puts BOS in front, None for a tokenizer that does not."""
    if not tokenizer.add_bos or tokenizer.bos_token is None:
        return None
    bos = {"SpecialToken": {"id": tokenizer.bos_token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    entry = {"id": tokenizer.bos_token, "ids": [tokenizer.bos_id], "tokens": [tokenizer.bos_token]}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {tokenizer.bos_token: entry},
    }


def _drop_prefix(step: Any) -> Any:
    """A normaliser or pre-tokenizer as JSON, with every step that adds a blank in front switched off."""
    if isinstance(step, list):
        return [_drop_prefix(part) for part in step]
    if not isinstance(step, dict):
        return step
    match step.get("type"):
        case "Sequence":
            return {name: _drop_prefix(value) for name, value in step.items()}
        case "Prepend":
            return step | {"prepend": ""}
        case "Metaspace":
            return step | {"prepend_scheme": "never"}
        case "ByteLevel":
            return step | {"add_prefix_space": False}
    return step


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (unigram or BPE), with the tokens that a Hugging Face folder adds to it.

    added          text -> (id, special) of tokens outside the model
    prefix_always  the blank in front also stands after every special token (Llama's `legacy` behaviour), not only at
                   the start of the text
    """

    kind = "sentencepiece"

    def __init__(
        self,
        proto: bytes,
        ids: SpecialIds,
        chat_template: str | None,
        *,
        added: Mapping[str, tuple[int, bool]],
        prefix_always: bool,
    ) -> None:
        self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self._bare = sentencepiece.SentencePieceProcessor(model_proto=proto + _NO_PREFIX)
        size = self._model.vocab_size()
        highest = max([size - 1, *(token_id for token_id, _ in added.values())])
        super().__init__(
            highest + 1, ids, chat_template, [hashlib.sha256(proto).hexdigest(), dict(added), prefix_always]
        )
        control = {self._model.id_to_piece(i): i for i in range(size) if self._model.is_control(i)}
        always = {text: token_id for text, (token_id, special) in added.items() if not special}
        every = control | {text: token_id for text, (token_id, _) in added.items()}
        self._split = {False: SpecialText(always), True: SpecialText(every)}
        self._text = {token_id: text for text, token_id in every.items()}
        self._special = set(self._text) - set(always.values())
        self._special_texts = frozenset(every) - frozenset(always)
        self._prefix_always = prefix_always

    @cached_property
    def special_texts(self) -> frozenset[str]:
        return self._special_texts

    def _ids(self, text: str, *, special: bool, prefix: bool) -> list[int]:
        ids: list[int] = []
        for part in self._split[special].split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += (self._model if prefix else self._bare).encode(part)
            prefix = self._prefix_always
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        texts: list[str] = []
        run: list[int] = []

        def close_run() -> None:
            if run:  # only the model itself takes the blank in front away again
                texts.append((self._model if self._prefix_always or not texts else self._bare).decode(run))
                run.clear()

        for token_id in map(int, ids):
            if token_id in self._text:
                close_run()
                if not skip_special or token_id not in self._special:
                    texts.append(self._text[token_id])
            elif 0 <= token_id < self._model.vocab_size():
                run.append(token_id)
        close_run()
        return "".join(texts)

    def token_text(self, token_id: int) -> str:
        if token_id in self._text:
            return self._text[token_id]
        if not 0 <= token_id < self._model.vocab_size():
            raise ValueError(f"token_text: got id {token_id}, expected one of the {self.vocab_size} of the vocabulary.")
        return self._model.id_to_piece(token_id)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder, or one tokenizer.json or SentencePiece .model file.

    In a folder tokenizer.json goes before tokenizer.model. Special tokens, BOS and chat template come from
    tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and chat_template.jinja or
    .json beside it; a SentencePiece model without any of them adds no BOS.

    Raises FileNotFoundError without such a file, ValueError for a file of another kind or a damaged one.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        candidates = [path / "tokenizer.json", path / "tokenizer.model"]
        file = next((c for c in candidates if c.is_file()), candidates[0])
        if not file.is_file():
            found = ", ".join(sorted(p.name for p in path.iterdir())[:12]) or "nothing"
            raise FileNotFoundError(
                f"{path}: expected tokenizer.json or tokenizer.model, found {found}; save the tokenizer with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...), which writes tokenizer.json."
            )
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a model folder, a tokenizer.json or a .model file.")
    settings = FolderSettings(file.parent)
    if file.suffix == ".json":
        return _load_pipeline(file, settings)
    if file.suffix == ".model":
        return _load_sentencepiece(file, settings)
    if file.suffix in _PICKLES:
        raise ValueError(
            f"{file}: got a {file.suffix} file, expected tokenizer.json or a SentencePiece .model; pickles are not "
            "read: save the tokenizer as tokenizer.json with save_pretrained. (llama2.c files: tokenizer_from_llama2c.)"
        )
    raise ValueError(
        f"{file}: got a {file.suffix or 'nameless'} file, expected tokenizer.json or a SentencePiece .model "
        "(GGUF files: tokenizer_from_gguf of their metadata)."
    )


def _load_pipeline(file: Path, settings: FolderSettings) -> HuggingFaceTokenizer:
    spec = read_json(file)
    try:
        pipeline = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{file}: not a tokenizer.json that tokenizers {tokenizers.__version__} can read ({error}); "
            "save it again with save_pretrained, or update the tokenizers package."
        ) from error
    bos_id = settings.bos_id(pipeline.token_to_id)
    add_bos = settings.add_bos
    if add_bos is None:
        add_bos = bos_id is not None and pipeline.encode("a").ids[:1] == [bos_id]
    ids = settings.special_ids(pipeline.token_to_id, bos_id=bos_id, add_bos=add_bos)
    content = {name: spec.get(name) for name in ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder")}
    return HuggingFaceTokenizer(pipeline, ids, settings.chat_template(), content)


def _load_sentencepiece(file: Path, settings: FolderSettings) -> SentencePieceTokenizer:
    proto = file.read_bytes()
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{file}: not a SentencePiece model ({error}); a tiktoken file of the same name or a Git LFS pointer is "
            "none: use the checkpoint's tokenizer.json, or download the file itself."
        ) from error
    added = settings.added_tokens(model.vocab_size())

    def find(text: str) -> int | None:
        if text in added:
            return added[text][0]
        token_id = model.piece_to_id(text)
        return token_id if model.id_to_piece(token_id) == text else None

    def of_model(token_id: int) -> int | None:
        return token_id if token_id >= 0 else None

    bos_id = settings.bos_id(find, otherwise=of_model(model.bos_id()))
    add_bos = settings.add_bos
    if add_bos is None:
        add_bos = settings.class_adds_bos
    ids = settings.special_ids(
        find,
        bos_id=bos_id,
        add_bos=add_bos,
        eos_otherwise=of_model(model.eos_id()),
        pad_otherwise=of_model(model.pad_id()),
    )
    return SentencePieceTokenizer(
        proto, ids, settings.chat_template(), added=added, prefix_always=settings.prefix_always
    )
