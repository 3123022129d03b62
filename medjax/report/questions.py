"""Every question of a run for the reader's browser: the lines of samples.jsonl as data of a page, beside its script.

  <script type="application/json" id="question-data"> {"evaluations": [...], "questions": [...], "answers": [...], ...}
  <script> questions.js, allowed by its digest in the page's Content-Security-Policy

A question stands once, however many evaluations asked it. What all prompts of an evaluation begin and end with (worked
examples, the frame of a chat) is cut off and stands once as well. In the data "<", ">" and "&" are written as escapes,
so that no text of a model or an item can end the element it stands in; the script writes texts as text, never as HTML.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from medjax.report import outcomes

LENGTHS = (20_000, 5_000, 1_000, 300)  # characters that are shown of a prompt or output, whatever the page can hold
MOST_CHARACTERS = 40_000_000  # of all prompts and outputs; with more the page is slow to open
# those that HTML gives a meaning, line ends of old JavaScript, and halves of characters, which UTF-8 cannot hold
_ESCAPED = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_RIGHT_OR_WRONG = ("exact_match", "acc", "acc_norm", "acc_bytes", "acc_per_token")
_SHOWN_OF_ASK = ("sample", "template", "truncated", "forced", "probability")
_SHOWN_OF_DOC = ("context", "section", "category", "exam", "prohibited", "points", "needs_image", "kind")


def script() -> Markup:
    """The content of the page's script element."""
    return Markup(files("medjax.report").joinpath("questions.js").read_text("utf-8"))


def script_source(text: str) -> str:
    """What a Content-Security-Policy calls this script and no other, such as 'sha256-…'."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def question_data(samples: Iterable[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> Markup | None:
    """The JSON of the page; None without samples.

    samples      objects as in samples.jsonl
    evaluations  of the page, in its order: id, name, protocol, language

    Raises ValueError for a sample of an evaluation that is not among them.
    """
    numbers = {entry["id"]: number for number, entry in enumerate(evaluations)}
    questions: dict[str, tuple[int, dict[str, Any]]] = {}
    answers: list[dict[str, Any]] = []
    for sample in samples:
        if sample["task"] not in numbers:
            raise ValueError(
                f"samples: got an answer of {sample['task']!r}, expected one of {', '.join(numbers)}; give the samples "
                "of the same run as the results."
            )
        question, _ = questions.setdefault(sample["doc_hash"], (len(questions), _question(sample)))
        answers.append(_answer(sample, numbers[sample["task"]], question))
    if not answers:
        return None
    heads = []
    for number, entry in enumerate(evaluations):
        asks = [ask for answer in answers if answer["evaluation"] == number for ask in answer["asks"]]
        begin, end = _cut_frame([ask for ask in asks if "prompt" in ask])
        heads.append(
            {**{key: entry[key] for key in ("id", "name", "protocol", "language")}, "begin": begin, "end": end}
        )
    _shorten([ask for answer in answers for ask in answer["asks"]])
    answers.sort(key=lambda answer: (answer["question"], answer["evaluation"]))
    names = dict.fromkeys(answer["outcome"] for answer in answers)
    return embedded(
        {
            "evaluations": heads,
            "questions": [shown for _, shown in questions.values()],
            "answers": answers,
            "outcomes": {name: {"label": outcomes.named(name), "tone": outcomes.look(name).tone} for name in names},
        }
    )


def embedded(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(_ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _question(sample: Mapping[str, Any]) -> dict[str, Any]:
    doc = sample["doc"]
    found = {key: doc[key] for key in ("id", "question", "choices", "answer")}
    found |= {key: doc[key] for key in _SHOWN_OF_DOC if doc.get(key)}
    if "human_accuracy" in sample:
        found["human"] = sample["human_accuracy"]
    return found


def _answer(sample: Mapping[str, Any], evaluation: int, question: int) -> dict[str, Any]:
    asks = [_ask(ask) for ask in sample["asks"]]
    for ask, prompt in zip(asks, _prompts(sample), strict=False):  # what was not asked has no prompt
        ask["prompt"] = prompt
    found = {
        **{"evaluation": evaluation, "question": question, "asks": asks},
        **{key: sample[key] for key in ("outcome", "picked", "points")},
        **({"prohibited": True} if sample["prohibited"] else {}),
    }
    if sample.get("agreement") is not None:
        found["agreement"] = sample["agreement"]
    further = {name: sample[name] for name in sample["metrics"] if name not in _RIGHT_OR_WRONG}
    return found | ({"metrics": further} if further else {})


def _ask(ask: Mapping[str, Any]) -> dict[str, Any]:
    found = {"parsed": ask["parsed"], "correct": ask["correct"]}
    found["scores" if isinstance(ask["output"], list) else "output"] = ask["output"]
    if list(ask["order"]) != sorted(ask["order"]):
        found["order"] = ask["order"]
    return found | {key: ask[key] for key in _SHOWN_OF_ASK if ask.get(key)}


def _prompts(sample: Mapping[str, Any]) -> list[str]:
    """One an ask; of scored choices there is an argument for each choice, all with the same prompt."""
    arguments, asks = list(sample["arguments"].values()), len(sample["asks"])
    each = len(arguments) // asks
    return [arguments[number * each]["arg_0"] for number in range(asks)] if each else []


def _cut_frame(asks: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Leave of the prompts what differs, and return what all begin and end with."""
    prompts = [ask["prompt"] for ask in asks]
    if len(set(prompts)) < 2:
        return "", ""
    begin = _common_start(prompts)
    rests = [prompt[len(begin) :] for prompt in prompts]
    end = _common_start([rest[::-1] for rest in rests])[::-1]
    for ask, rest in zip(asks, rests, strict=True):
        ask["prompt"] = rest[: len(rest) - len(end)]
    return begin, end


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all between them share
    same = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:same]


def _shorten(asks: Sequence[dict[str, Any]]) -> None:
    """Shorten long texts so that the page stays quick, and say so where one is."""
    texts = [(ask, key, ask[key]) for ask in asks for key in ("prompt", "output") if key in ask]
    lengths = [len(text) for _, _, text in texts]
    most = next((n for n in LENGTHS if sum(min(n, length) for length in lengths) <= MOST_CHARACTERS), LENGTHS[-1])
    for ask, key, text in texts:
        if len(text) > most:
            ask[key] = f"{text[:most]}\n… {len(text) - most:,} more characters in samples.jsonl"
