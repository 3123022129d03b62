"""Finished runs read back: results.json and samples.jsonl of a run folder, for whoever compares or counts again."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medjax.store.runs import named

T = TypeVar("T")
Key = tuple[str, str, str]  # task, language, protocol id
_NEEDED = ("doc", "doc_hash", "prompt_hash", "correct", "points")
_KEPT = (*_NEEDED, "picked", "unparsed", "truncated", "asked")
_LONGEST_OUTPUT = 4000  # characters of an output that are kept


@dataclass(frozen=True)
class GradedRun:
    """A finished run of medjax.eval.

    results      what results.json holds
    evaluations  (task, language, protocol) -> entry of medjax.evaluations; an adapter's entry wins over its base's
    """

    path: Path
    results: Mapping[str, Any]
    evaluations: Mapping[Key, Mapping[str, Any]]

    @property
    def record(self) -> Mapping[str, Any]:
        """The protocol record."""
        found: Mapping[str, Any] = self.results["medjax"]
        return found

    @classmethod
    def read(cls, path: str | Path) -> "GradedRun":
        """Raises what `read_results` raises."""
        path = named(path)
        return read_results(path, lambda results: cls(path, results, _evaluations(results)), of="questions")

    def not_graded(self, key: Key) -> str:
        """Why an evaluation has no score: no item of it reached the model; "" where it has one."""
        return str(self.evaluations[key].get("scores", {}).get("not_graded", ""))

    def samples(self, keys: Iterable[Key]) -> dict[Key, dict[str, Mapping[str, Any]]]:
        """Evaluation -> item id -> sample, of the evaluations wanted.

        A sample holds doc, doc_hash, prompt_hash, correct, points; picked, unparsed, truncated and asked, as far as the
        run wrote them; and output, what was written where the answer was read (its first 4,000 characters, "" where
        choices were scored): of an item that was asked several times, the first text that says what its answer says.
        """
        wanted = {self.evaluations[key]["id"]: key for key in keys}
        found: dict[Key, dict[str, Mapping[str, Any]]] = {key: {} for key in wanted.values()}
        file = self.path / "samples.jsonl"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; it stands beside results.json, copy both.")
        # bytes: generated text may hold U+2028 and other line ends, which JSON lets stand
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    sample = json.loads(line)
                    if sample["task"] in wanted:
                        found[wanted[sample["task"]]][sample["doc"]["id"]] = _kept(sample)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{file}, line {number}: {type(error).__name__}: {error}; expected what medjax.eval writes; "
                        "run the evaluation again."
                    ) from None
        return found


def read_results(path: Path, take: Callable[[Any], T], *, of: str) -> T:
    """What `take` makes of the results.json in the folder of a finished run.

    of  what the run is on, "questions" or "ECGs"
    Raises FileNotFoundError for a folder without results, and ValueError for results of something else, where `take`
    raises ValueError, KeyError or TypeError.
    """
    file = path / "results.json"
    try:
        return take(json.loads(file.read_text("utf-8")))
    except OSError:
        raise FileNotFoundError(
            f"{path}: got no results.json, expected the folder of a finished run; run it to its end first."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: {type(error).__name__}: {error}; expected what medjax.eval writes of a run on {of}; name such a "
            "run, or run the evaluation again."
        ) from None


def _evaluations(results: Mapping[str, Any]) -> dict[Key, Mapping[str, Any]]:
    # the base comes first, so that the adapter's entry replaces it
    return {(e["task"], e["language"], e["protocol"]): e for e in results["medjax"]["evaluations"]}


def called(key: Key) -> str:
    """What messages call an evaluation: "ward (en) strict-0shot"."""
    task, language, protocol = key
    return f"{task} ({language}) {protocol}"


def labels(runs: Sequence[GradedRun]) -> list[str]:
    """What runs are called: the names of their folders, or the whole paths where two are the same."""
    names = [run.path.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _kept(sample: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: sample[name] for name in _NEEDED} | {name: sample[name] for name in _KEPT if name in sample}
    return kept | {"output": _output(sample.get("asks", ()), sample.get("picked"))}


def _output(asks: Iterable[Mapping[str, Any]], picked: Any) -> str:
    texts = [(ask["parsed"], ask["output"]) for ask in asks if isinstance(ask["output"], str)]
    text = next((text for read, text in texts if read == picked), texts[0][1] if texts else "")
    return text if len(text) <= _LONGEST_OUTPUT else text[:_LONGEST_OUTPUT] + "…"
