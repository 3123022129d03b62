"""In words, why a run is another one than that which its folder holds: options as they were given, then what they hide.

  --num-fewshot 0 -> 2; --dtype float32 -> bfloat16; weights of the model: 3b0c… -> 91ff…; version of jax: 0.6 -> 0.7

The identity of a run is mostly digests, which say that something changed and not what. Its config.toml says the rest; a
digest is named where no option explains it: a file was changed in place.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medjax.config import ConfigError, load
from medjax.eval.settings import EvalSettings
from medjax.store.provenance import options_changed

_ELSEWHERE = ("out", "name", "shard", "models", "engine.compilation_cache")  # no part of what a run is
_OF_MODEL = ("model.name", "model.revision", "model.quantisation")
_OF_PROMPTS = ("model.", "protocol.", "task.", "seed")
_LONGEST = 12  # characters of a digest


def difference(place: Path, settings: EvalSettings) -> Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]:
    """What RunFolder.open asks about two identities, the one it found in the folder and the run's own.

    place     the run's folder, with the config.toml of the run that it holds
    settings  of the run that would be written there
    The function gives nothing where config.toml cannot be read, or explains nothing.
    """

    def told(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        try:
            options = options_changed(load(EvalSettings, place / "config.toml"), settings)
        except ConfigError:  # of another version, or a run that was stopped before it was written
            return []
        options = {key: text for key, text in options.items() if key not in _ELSEWHERE}
        return [*options.values(), *_weights(old, new, options), *_asked(old, new, options), *_place(old, new)]

    return told


def _weights(old: Mapping[str, Any], new: Mapping[str, Any], options: Mapping[str, str]) -> list[str]:
    same_model = options.keys().isdisjoint(_OF_MODEL)
    found = []
    for key, words in (("model", "weights of the model"), ("tokenizer", "tokenizer")):
        if same_model and (told := _digests(words, old.get(key), new.get(key))):
            found.append(told)
    if "model.adapter" not in options and (told := _digests("adapter", old.get("adapter"), new.get("adapter"))):
        found.append(told)
    return found


def _asked(old: Mapping[str, Any], new: Mapping[str, Any], options: Mapping[str, str]) -> list[str]:
    """Questions and prompts that changed though no option did: files that were changed in place."""
    before, now = old.get("evaluations", {}), new.get("evaluations", {})
    explained = any(key.startswith(_OF_PROMPTS) for key in options)
    found: dict[str, None] = {}
    changed = set()  # sets and protocols share a file of questions
    for name in sorted(before.keys() & now.keys()):
        pair = before[name].get("data"), now[name].get("data")
        if (told := _digests(f"data of {name}", *pair)) and pair not in changed:
            changed.add(pair)
            found[told] = None
        pair = before[name].get("prompts"), now[name].get("prompts")
        if not explained and not changed and (told := _digests(f"prompts of {name} (chat template)", *pair)):
            found[told] = None
    gone, come = (", ".join(sorted(names)) for names in (before.keys() - now.keys(), now.keys() - before.keys()))
    if (gone or come) and not explained:
        found[f"evaluations: {gone or 'none'} -> {come or 'none'} (a template was changed in place)"] = None
    return list(found)


def _place(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    devices = [identity.get("engine", {}).get("devices") for identity in (old, new)]
    found = [f"devices: {devices[0]} -> {devices[1]}"] if devices[0] != devices[1] else []
    before, now = old.get("versions", {}), new.get("versions", {})
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            found.append(f"version of {name}: {before.get(name, 'none')} -> {now.get(name, 'none')}")
    return found


def _digests(words: str, old: str | None, new: str | None) -> str:
    if old == new:
        return ""
    return f"{words}: digest {(old or 'none')[:_LONGEST]} -> {(new or 'none')[:_LONGEST]}"
