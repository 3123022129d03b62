"""What a run needs to be repeated: the command line and the versions of what computed."""

import json
import platform
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Any

from medjax.config import to_dict

_PACKAGES = ("medjax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "sentencepiece", "gguf", "safetensors", "jinja2")
_NOT_GIVEN = {"objective": "language"}  # what a command takes that does not say it, whatever the settings' own default


def versions(*more: str) -> dict[str, str]:
    """Versions of what computes, of what reads weights, tokens and templates, and of more packages."""
    return {**{package: version(package) for package in (*_PACKAGES, *more)}, "python": platform.python_version()}


def command(settings: Any, prog: str) -> str:
    """The command line that repeats a run: its kind of work, and every setting that is not the default.

    settings  a configuration dataclass; prog such as "medjax.train"
    """
    usual, own = _flat(to_dict(type(settings)())) | _NOT_GIVEN, _flat(to_dict(settings))
    short = _short_options(type(settings))
    parts = [f"{short.get(key, '--' + key)} {_shown(value)}" for key, value in own.items() if value != usual.get(key)]
    return " ".join([f"python -m {prog}", *parts])


def options_changed(old: Any, new: Any) -> dict[str, str]:
    """Key path -> "--num-fewshot 0 -> 2", for every setting in which two configurations of one kind differ."""
    before, now = _flat(to_dict(old)), _flat(to_dict(new))
    short = _short_options(type(new))
    return {
        key: f"{short.get(key, '--' + key)} {_told(before.get(key))} -> {_told(now.get(key))}"
        for key in (*now, *(key for key in before if key not in now))
        if before.get(key) != now.get(key)
    }


def _told(value: Any) -> str:
    return "none" if value in (None, (), []) else _shown(value)


def _short_options(section: Any, at: str = "") -> dict[str, str]:
    """Key path -> its short option, for keys that have one."""
    options: dict[str, str] = {}
    for key in fields(section):
        value = getattr(section, key.name)
        if is_dataclass(value):
            options |= _short_options(value, f"{at}{key.name}.")
        elif aliases := key.metadata["aliases"]:
            options[at + key.name] = aliases[0]
    return options


def _flat(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{at}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        texts = [str(one) for one in value]
        plain = ",".join(texts)
        # on the command line a comma divides a list, but not within an array, which begins with a bracket
        value = json.dumps(texts, ensure_ascii=False) if plain.count(",") >= len(texts) or plain[:1] == "[" else plain
    return shlex.quote(str(value))
