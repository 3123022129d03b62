"""Exam sets as training data: the labelled questions that a set holds beside those it asks.

`pubmedqa:train` names the 500 questions of PubMedQA outside its test split. Each becomes a conversation in the words of
the protocol `choice-logprob`, so that what is trained is what is graded; its answer is the text of the right choice,
with a line of explanation after it where the set has one.
"""

import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medjax.data.exams import wording
from medjax.data.exams.groups import missing
from medjax.data.exams.tasks import TASKS, LoadedTask, load_task
from medjax.data.qa import Item
from medjax.data.text.overlap import Asked

_PART = ":train"
_MANY_ITEMS = 8


def is_training_part(name: str) -> bool:
    """Whether a name means the training part of an exam set, such as pubmedqa:train."""
    return name.endswith(_PART)


def write_training_part(
    name: str, folder: Path, *, chat: bool, explanations: bool, data_dir: str | Path | None = None
) -> Path:
    """Write the training part of a set as a JSONL file of records; its name tells its content.

    chat  conversations; else prompt and response, joined as the protocol joins them without a chat template

    Raises ValueError for an unknown set, and for one without questions beside those it asks.
    """
    task = load_task(name.removesuffix(_PART), data_dir=data_dir)
    if task.pool_is_test:
        raise ValueError(
            f"data: {name}: the set holds no questions but those it asks, expected a set with a training part, such as "
            "pubmedqa, smdis or crade; name another set, or files of your own."
        )
    lines = [json.dumps(_record(item, task.language, chat, explanations), ensure_ascii=False) for item in task.fewshot]
    text = "\n".join(lines) + "\n"
    path = folder / f"{task.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # several processes may do this at once: the same bytes, under names of their own
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, suffix=".partial", delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    return path


def _record(item: Item, language: str, chat: bool, explanations: bool) -> dict[str, object]:
    system, question = wording.system(language), wording.question(item, language, asks_letter=False)
    answer = wording.answer(item, as_letters=False)
    if explanations and item.explanation:
        answer += "\n" + item.explanation
    if chat:
        turns = (("system", system), ("user", question), ("assistant", answer))
        return {"id": item.id, "messages": [{"role": role, "content": content} for role, content in turns]}
    return {"id": item.id, "prompt": f"{system}\n{question}", "response": wording.answer_gap(question) + answer}


def asked_items(names: tuple[str, ...], data_dir: str | Path | None = None) -> Iterator[Asked]:
    """The items of exam sets, in all their languages, as texts to look for in training data.

    names  of sets or paths of exam files; "auto" stands for every set whose files are at hand
    Raises what load_task raises.
    """
    auto = [name for name in TASKS if missing(name, data_dir) is None] if "auto" in names else []
    every = itertools.chain.from_iterable(auto if name == "auto" else [name] for name in names if name != "none")
    for name in dict.fromkeys(every):
        for language in TASKS[name].languages if name in TASKS else (None,):
            yield from asked_of(load_task(name, language=language, data_dir=data_dir), name)


def asked_of(task: LoadedTask, name: str) -> Iterator[Asked]:
    """The items of a task, one by one, as texts to look for; an id is the name given and the item's own."""
    lines = Counter(line for item in task.items for line in set(item.question.splitlines()))
    for item in task.items:
        # a line that many items open with is the set's, not the item's
        own = [line for line in item.question.splitlines() if not line.strip() or lines[line] <= _MANY_ITEMS]
        context = (item.context,) if item.context else ()
        yield Asked(f"{name} {item.id}", "\n".join(own).strip() or item.question, (*item.choices, *context))
