"""Tokenizers from the vocabularies that model files carry themselves: GGUF metadata and llama2.c's tokenizer.bin.

  GGUF "gpt2"   byte-level BPE; tokenizer.ggml.pre names how text is cut before merging. Built as a `tokenizers`
                pipeline. The patterns are those of the models' own tokenizer.json; the names are llama.cpp's.
  GGUF "llama"  SentencePiece BPE: pieces with scores, no merge list; `ScoreMergeTokenizer`.
  llama2.c      the same algorithm; blanks are written as blanks instead of "▁".

Score-greedy merging: start from single characters, join the neighbours whose joined piece has the highest score (the
leftmost of equals) until nothing joins, then spell what is not in the vocabulary in bytes. A heap holds the
candidates, so a text of n characters takes O(n log n). Two characters that stand side by side in no piece are never
joined, nor does anything cross them: the text is cut there, and the ids of each stretch are remembered, since the
choices of a question come with the same long context again and again. The ids are exactly those of the whole text.

Source: ggml-org/llama.cpp@00ad355 src/llama-vocab.cpp (names, defaults); karpathy/llama2.c@350e04f (file layout).
"""

import functools
import heapq
import itertools
import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from medjax.data.text.special_tokens import SpecialIds, SpecialText
from medjax.data.text.tokenizer import HuggingFaceTokenizer, Tokenizer, bos_template

# Characters of a remembered stretch, at least: looking up many shorter ones takes longer than it saves
_SHORTEST = 32

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


@dataclass(frozen=True)
class _Split:
    """How a byte-level BPE cuts a text: patterns in turn, each on the pieces of the one before.

    ignore_merges  a piece that is in the vocabulary is taken whole, whatever the merges
    nfc            text is brought into normal form C first (the models' own tokenizers do; the GGUF does not say)
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False
    add_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_THREE_DIGITS, _ONE_DIGIT = _WORDS.replace("DIGITS", "{1,3}"), _WORDS.replace("DIGITS", "")
_SPLITS: dict[str, _Split] = {
    "default": _Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "jais"), _Split((_GPT2,))),
    **dict.fromkeys(("olmo", "mpt"), _Split((_GPT2,), nfc=True)),  # both took GPT-NeoX's tokenizer over
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _Split((r"\p{N}", _GPT2)),
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3"), _Split((_THREE_DIGITS,), ignore_merges=True, add_bos=True)
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _Split((_THREE_DIGITS,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _Split((_ONE_DIGIT,), nfc=True)),
    "stablelm2": _Split((_ONE_DIGIT,)),
    "tekken": _Split((_TEKKEN,), ignore_merges=True, add_bos=True),
}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that the metadata of a GGUF file describe.

    metadata  key -> value as Python objects, for instance {k: f.contents() for k, f in GGUFReader(path).fields.items()}

    Raises ValueError for a tokenizer model or pre-tokenizer that is not supported, and for missing or unequal lists.
    """
    model = _required(metadata, "model")
    builders = {"gpt2": _byte_level, "llama": _score_merge}
    if model not in builders:
        raise ValueError(
            f"GGUF tokenizer.ggml.model: got {model!r}, supported are {', '.join(builders)}; use the Hugging Face form "
            "of this checkpoint, with its tokenizer.json."
        )
    return builders[model](metadata)


def tokenizer_from_llama2c(path: Path) -> Tokenizer:
    """Read a tokenizer.bin of llama2.c, for instance stories260K's tok512.bin: BOS 1, EOS 2, bytes from id 3.

    Raises FileNotFoundError, or ValueError for a file that ends early or is no such table.
    """
    path = Path(path)
    data = path.read_bytes()
    pieces: list[str] = []
    scores: list[float] = []
    offset = 4
    try:
        (longest,) = struct.unpack_from("<i", data, 0)
        while offset < len(data):
            score, length = struct.unpack_from("<fi", data, offset)
            raw = data[offset + 8 : offset + 8 + length]
            if not 0 <= length <= longest or len(raw) != length:
                raise ValueError(f"token {len(pieces)} has length {length}, {len(raw)} bytes are left")
            pieces.append(raw.decode("utf-8"))
            scores.append(score)
            offset += 8 + length
        if pieces[3:259] != [f"<0x{byte:02X}>" for byte in range(256)]:
            raise ValueError("ids 3 to 258 are not the bytes <0x00> to <0xFF>")
    except (struct.error, ValueError) as error:
        raise ValueError(
            f"{path}: byte {offset}: {error}; expected llama2.c's table (int32 longest, then float32 score, int32 "
            "length and text of each token); export it again with tokenizer.py of llama2.c."
        ) from error
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * (len(pieces) - 259)]
    pieces[:3] = [piece.strip() for piece in pieces[:3]]  # stored as "\n<s>\n"
    ids = SpecialIds(bos_id=1, eos_ids=(2,), pad_id=None, add_bos=True)
    return ScoreMergeTokenizer(pieces, scores, types, ids, None, blank=" ", prefix=True)


def cut_between_pieces(text: str, neighbours: Collection[str], shortest: int) -> Iterator[str]:
    """Cut a text where no piece can bridge the cut; the stretches in order.

    neighbours  every two characters that stand side by side in some piece of the vocabulary
    shortest    characters that a stretch has at least (the last may have fewer)

    Score-greedy merging of the stretches, one by one, is that of the whole text: a piece across a cut would hold the
    two characters beside it, so it has no score, and merges within one stretch do not look at another.
    """
    start, end = 0, shortest
    while end < len(text):
        if text[end - 1 : end + 1] in neighbours:
            end += 1
        else:
            yield text[start:end]
            start, end = end, end + shortest
    if text:
        yield text[start:]


def merge_by_score(text: str, score: Callable[[str], float | None]) -> list[str]:
    """Split a text into pieces by score-greedy merging.

    score  of a piece, None where it is not in the vocabulary
    """
    pieces: list[str] = list(text)
    following = [*range(1, len(pieces)), -1]
    previous = list(range(-1, len(pieces) - 1))
    heap: list[tuple[float, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            joined = pieces[left] + pieces[right]
            value = score(joined)
            if value is not None:
                heapq.heappush(heap, (-value, left, right, len(joined)))

    for left in range(len(pieces) - 1):
        offer(left, left + 1)
    while heap:
        _, left, right, length = heapq.heappop(heap)
        # a neighbour merged meanwhile has become longer, or empty
        if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != length:
            continue
        pieces[left] += pieces[right]
        pieces[right] = ""
        following[left] = following[right]
        if following[left] >= 0:
            previous[following[left]] = left
        offer(previous[left], left)
        offer(left, following[left])
    return [piece for piece in pieces if piece]


class ScoreMergeTokenizer(Tokenizer):
    """SentencePiece BPE from a table of pieces, scores and types.

    blank   how the pieces write a blank: "▁" or " "
    prefix  a blank is put in front of every stretch of text, and taken away from the decoded text
    """

    kind = "score-merge"

    def __init__(
        self,
        pieces: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        ids: SpecialIds,
        chat_template: str | None,
        *,
        blank: str,
        prefix: bool,
    ) -> None:
        content = [list(pieces), [float(s) for s in scores], [int(t) for t in types], blank, prefix]
        super().__init__(len(pieces), ids, chat_template, content)
        self._pieces = list(pieces)
        self._types = list(types)
        self._blank = blank
        self._prefix = prefix
        mergeable = [i for i, kind in enumerate(types) if kind in (_NORMAL, _USER_DEFINED)]
        self._id = {pieces[i]: i for i in mergeable}
        self._score = {pieces[i]: float(scores[i]) for i in mergeable}
        self._neighbours = {a + b for piece in self._score for a, b in itertools.pairwise(piece)}
        self._stretch_ids = functools.lru_cache(1 << 14)(self._merge)
        self._byte_id = {int(pieces[i][1:-1], 16): i for i, kind in enumerate(types) if kind == _BYTE}
        self._unknown_id = next((i for i, kind in enumerate(types) if kind == _UNKNOWN), None)
        written = {pieces[i].replace(blank, " "): i for i, kind in enumerate(types) if kind == _USER_DEFINED}
        control = {pieces[i]: i for i, kind in enumerate(types) if kind == _CONTROL}
        self._split = {False: SpecialText(written), True: SpecialText(written | control)}

    def _ids(self, text: str, *, special: bool, prefix: bool) -> list[int]:
        ids: list[int] = []
        for part in self._split[special].split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                spelled = (" " + part if prefix and self._prefix else part).replace(" ", self._blank)
                for stretch in cut_between_pieces(spelled, self._neighbours, _SHORTEST):
                    ids += self._stretch_ids(stretch)
            prefix = True
        return ids

    def _merge(self, stretch: str) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in merge_by_score(stretch, self._score.get):
            ids += [self._id[piece]] if piece in self._id else self._spell(piece)
        return tuple(ids)

    def _spell(self, piece: str) -> list[int]:
        """A character without a piece: its bytes, or the unknown id where the vocabulary has no such byte."""
        raw = piece.encode("utf-8")
        if all(byte in self._byte_id for byte in raw):
            return [self._byte_id[byte] for byte in raw]
        return [] if self._unknown_id is None else [self._unknown_id]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        raw = b""
        at_start = self._prefix
        for token_id in map(int, ids):
            if not 0 <= token_id < self.vocab_size:
                continue
            piece, kind = self._pieces[token_id], self._types[token_id]
            if kind in (_CONTROL, _UNKNOWN):
                raw += b"" if skip_special else piece.encode("utf-8")
                at_start = self._prefix
            elif kind == _BYTE:
                raw += bytes([int(piece[1:-1], 16)])
                at_start = False
            else:
                text = piece.replace(self._blank, " ")
                raw += text.removeprefix(" ").encode("utf-8") if at_start else text.encode("utf-8")
                at_start = kind == _USER_DEFINED and self._prefix
        return raw.decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token_text: got id {token_id}, expected one of the {self.vocab_size} of the vocabulary.")
        return self._pieces[token_id]

    def to_json(self) -> str:
        """The same merges as a byte-pair encoding: every pair that joins to a piece, highest score first.

        Equal ids need scores that differ, as those of SentencePiece's BPE do.
        """

        # found in the text before any blank is rewritten, so they keep theirs and nothing merges into them
        defined = {piece for piece, kind in zip(self._pieces, self._types, strict=True) if kind == _USER_DEFINED}

        def spelled(piece: str) -> str:
            return piece.replace(self._blank, " " if piece in defined else "▁")

        pairs = sorted(
            (-score, self._id[piece], piece[:cut], piece[cut:])
            for piece, score in self._score.items()
            for cut in range(1, len(piece))
            if not {piece, piece[:cut], piece[cut:]} & defined and piece[:cut] in self._id and piece[cut:] in self._id
        )
        pipeline = Pipeline(
            models.BPE(
                vocab={spelled(piece): i for i, piece in enumerate(self._pieces)},
                merges=[(spelled(left), spelled(right)) for *_, left, right in pairs],
                unk_token=None if self._unknown_id is None else spelled(self._pieces[self._unknown_id]),
                byte_fallback=True,
            )
        )
        blanks: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if self._prefix else []
        pipeline.normalizer = normalizers.Sequence([*blanks, normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        pipeline.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if self._prefix else [])])
        for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
            chosen = [piece for piece, its in zip(self._pieces, self._types, strict=True) if its == kind]
            texts = chosen if special else [spelled(piece) for piece in chosen]
            pipeline.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
        return json.dumps(json.loads(pipeline.to_str()) | {"post_processor": bos_template(self)}, ensure_ascii=False)


def _required(metadata: Mapping[str, Any], name: str) -> Any:
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        raise ValueError(
            f"GGUF metadata: {key} is missing, expected it in a complete model file; convert the checkpoint again with "
            "a current llama.cpp."
        )
    return metadata[key]


def _types(metadata: Mapping[str, Any], tokens: Sequence[str], control: Iterable[int | None]) -> list[int]:
    """tokenizer.ggml.token_type, or what the tokens' names tell where a file has none."""
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        special = {*control, None}
        return [_CONTROL if i in special else _BYTE if _is_byte(token) else _NORMAL for i, token in enumerate(tokens)]
    return [int(kind) for kind in _same_length(types, "token_type", tokens)]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _same_length(values: Sequence[Any], name: str, tokens: Sequence[str]) -> Sequence[Any]:
    if len(values) != len(tokens):
        raise ValueError(
            f"GGUF tokenizer.ggml.{name}: got {len(values)} entries, expected one for each of {len(tokens)} tokens; "
            "the file is damaged: download or convert it again."
        )
    return values


def _special_ids(
    metadata: Mapping[str, Any], tokens: Sequence[str], *, bos_id: int | None, eos_id: int | None, add_bos: bool
) -> SpecialIds:
    """Special ids as stated, with the defaults of the tokenizer model."""

    def stated(name: str, otherwise: int | None = None) -> int | None:
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id", otherwise)
        if token_id is not None and not 0 <= int(token_id) < len(tokens):
            raise ValueError(
                f"GGUF tokenizer.ggml.{name}_token_id: got {token_id}, expected an id below {len(tokens)}; "
                "the file is damaged: download or convert it again."
            )
        return None if token_id is None else int(token_id)

    ends = [stated("eos", eos_id), stated("eot"), stated("eom")]
    return SpecialIds(
        bos_id=stated("bos", bos_id),
        eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        pad_id=stated("padding"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)),
    )


def _byte_level(metadata: Mapping[str, Any]) -> HuggingFaceTokenizer:
    tokens, merges, pre = (_required(metadata, name) for name in ("tokens", "merges", "pre"))
    if pre not in _SPLITS:
        raise ValueError(
            f"GGUF tokenizer.ggml.pre: got {pre!r}, supported are {', '.join(sorted(_SPLITS))}; use the Hugging Face "
            "form of this checkpoint, with its tokenizer.json."
        )
    split = _SPLITS[pre]
    ids = _special_ids(metadata, tokens, bos_id=None, eos_id=None, add_bos=split.add_bos)
    types = _types(metadata, tokens, (ids.bos_id, ids.pad_id, *ids.eos_ids))
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        model = models.BPE(
            vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, ignore_merges=split.ignore_merges
        )
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"GGUF tokenizer.ggml.merges: {error}; expected two tokens of the vocabulary in each; the file is damaged: "
            "download or convert it again."
        ) from error
    pipeline = Pipeline(model)
    if split.nfc:
        pipeline.normalizer = normalizers.NFC()
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pipeline.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        chosen = [token for token, its in zip(tokens, types, strict=True) if its == kind]
        pipeline.add_tokens([AddedToken(token, special=special, normalized=False) for token in chosen])
    content = [pre, tokens, merges, types]
    return HuggingFaceTokenizer(pipeline, ids, metadata.get("tokenizer.chat_template"), content)


def _score_merge(metadata: Mapping[str, Any]) -> ScoreMergeTokenizer:
    tokens = _required(metadata, "tokens")
    scores = _same_length(_required(metadata, "scores"), "scores", tokens)
    ids = _special_ids(metadata, tokens, bos_id=1, eos_id=2, add_bos=True)
    types = _types(metadata, tokens, (0, ids.bos_id, ids.pad_id, *ids.eos_ids))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    template = metadata.get("tokenizer.chat_template")
    return ScoreMergeTokenizer(tokens, scores, types, ids, template, blank="▁", prefix=prefix)
