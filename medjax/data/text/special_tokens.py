"""Special tokens: which ids a checkpoint names, where they stand in a text, and the JSON files that say so.

A Hugging Face folder spreads the facts over several files; the first that speaks wins:

  bos_token, eos_token, pad_token   tokenizer_config.json, special_tokens_map.json   (a string or {"content": …})
  BOS, PAD ids                      config.json, when neither file above has the key (a null there means: none)
  EOS ids                           all of: eos_token, generation_config.json, config.json (an int or a list)
  add_bos_token, tokenizer_class, legacy, added_tokens_decoder    tokenizer_config.json
  added tokens                      also added_tokens.json, the older form
  chat template                     chat_template.jinja, chat_template.json, tokenizer_config.json
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Classes of Hugging Face tokenizers that put BOS in front unless tokenizer_config.json says otherwise
_BOS_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer", "GemmaTokenizerFast")


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """The special tokens of a checkpoint, and whether it wants BOS in front of a text."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    add_bos: bool

    def __post_init__(self) -> None:
        if self.add_bos and self.bos_id is None:
            raise ValueError(
                "tokenizer: got add_bos_token = true without a BOS token, expected one of known id; "
                "name bos_token in tokenizer_config.json or set add_bos_token to false."
            )


class SpecialText:
    """Special tokens as written in a text, longest first: "a</s>b" -> "a", 2, "b"."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {text: token_id for text, token_id in ids.items() if text}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def split(self, text: str) -> Iterator[str | int]:
        """The stretches of ordinary text (never empty) and the ids between them."""
        start = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            if match.start() > start:
                yield text[start : match.start()]
            yield self._ids[match.group()]
            start = match.end()
        if start < len(text):
            yield text[start:]


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError names the file and the place of the fault."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error}); expected a complete file, download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got a JSON {type(content).__name__}, expected an object; download it again.")
    return content


class FolderSettings:
    """What the JSON files of a Hugging Face folder say about the tokenizer; absent files say nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokenizer = self._read("special_tokens_map.json") | self._read("tokenizer_config.json")
        self._config = self._read("config.json")
        self._generation = self._read("generation_config.json")

    def _read(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        return read_json(file) if file.is_file() else {}

    @property
    def add_bos(self) -> bool | None:
        """add_bos_token, None where it is absent or null."""
        value = self._tokenizer.get("add_bos_token")
        return value if isinstance(value, bool) else None

    @property
    def class_adds_bos(self) -> bool:
        return self._tokenizer.get("tokenizer_class") in _BOS_CLASSES

    @property
    def prefix_always(self) -> bool:
        """Whether SentencePiece's blank also stands after special tokens: unless `legacy` is false."""
        return self._tokenizer.get("legacy") is not False

    def bos_id(self, find: Callable[[str], int | None], *, otherwise: int | None = None) -> int | None:
        """Id of BOS; `find` looks a token up, `otherwise` is the vocabulary's own BOS."""
        return self._named("bos", find, otherwise)

    def special_ids(
        self,
        find: Callable[[str], int | None],
        *,
        bos_id: int | None,
        add_bos: bool,
        eos_otherwise: int | None = None,
        pad_otherwise: int | None = None,
    ) -> SpecialIds:
        """All special ids; the `otherwise` ids are the vocabulary's own, for files that say nothing."""
        eos_ids: list[int] = []
        for found in (
            self._named("eos", find, eos_otherwise),
            self._generation.get("eos_token_id"),
            self._config.get("eos_token_id"),
        ):
            eos_ids += found if isinstance(found, list) else [] if found is None else [found]
        pad_id = self._named("pad", find, pad_otherwise, required=False)
        return SpecialIds(bos_id=bos_id, eos_ids=tuple(dict.fromkeys(eos_ids)), pad_id=pad_id, add_bos=add_bos)

    def _named(
        self, kind: str, find: Callable[[str], int | None], otherwise: int | None, required: bool = True
    ) -> int | None:
        key = f"{kind}_token"
        if key not in self._tokenizer:
            if otherwise is not None:
                return otherwise
            stated = self._config.get(f"{key}_id")
            return stated if isinstance(stated, int) else None
        token = self._tokenizer[key]
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            return None
        token_id = find(text)
        if token_id is None and required:
            raise ValueError(
                f"{self.folder / 'tokenizer_config.json'}: {key} is {text!r}, expected a token of the vocabulary; "
                "correct the name, or use the vocabulary that belongs to this file."
            )
        return token_id

    def added_tokens(self, model_size: int) -> dict[str, tuple[int, bool]]:
        """Tokens beyond the `model_size` of a SentencePiece model, or marked in it: text -> (id, special)."""
        added = {text: (token_id, True) for text, token_id in self._read("added_tokens.json").items()}
        for token_id, token in self._tokenizer.get("added_tokens_decoder", {}).items():
            added[token["content"]] = (int(token_id), bool(token.get("special", False)))
        # an unknown token written in a text is not a request for the unknown id
        return {text: entry for text, entry in added.items() if text != "<unk>" or entry[0] >= model_size}

    def chat_template(self) -> str | None:
        """Jinja source of the chat template; of several named ones, "default"."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file}: not UTF-8 ({error}), expected a Jinja template in that encoding; "
                    "save it as UTF-8, or download it again."
                ) from error
        template = self._read("chat_template.json").get("chat_template", self._tokenizer.get("chat_template"))
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            if "default" not in named:
                raise ValueError(
                    f"{self.folder}: chat_template holds {', '.join(named)}, expected one named default; "
                    "put the wanted one into chat_template.jinja."
                )
            return named["default"]
        return template
