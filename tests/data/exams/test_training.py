"""Training parts of exam sets: the bytes of the protocol, the split, and the items that must not be trained on."""

import json

import pytest

from medjax.data.exams import wording
from medjax.data.exams.tasks import load_task
from medjax.data.exams.training import asked_items, is_training_part, write_training_part


def test_names():
    assert is_training_part("pubmedqa:train")
    assert not is_training_part("pubmedqa.jsonl")


@pytest.fixture
def part(shared_data, tmp_path):
    def write(**options):
        options = {"chat": True, "explanations": True, "data_dir": shared_data} | options
        path = write_training_part("pubmedqa:train", tmp_path, **options)
        return path, [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]

    return write


def test_pubmedqa_in_the_words_of_the_protocol(part, shared_data):
    task = load_task("pubmedqa", data_dir=shared_data)
    _, records = part()
    assert [record["id"] for record in records] == [item.id for item in task.fewshot]
    assert len(records) == 500
    assert not {record["id"] for record in records} & {item.id for item in task.items}
    item, (system, user, assistant) = task.fewshot[7], records[7]["messages"]
    assert (system["role"], user["role"], assistant["role"]) == ("system", "user", "assistant")
    assert system["content"] == wording.system("en")
    assert user["content"] == wording.question(item, "en", asks_letter=False)
    assert assistant["content"] == wording.answer(item, as_letters=False) + "\n" + item.explanation
    assert assistant["content"].split("\n")[0] in ("yes", "no", "maybe")


def test_without_chat_and_explanations(part, shared_data):
    item = load_task("pubmedqa", data_dir=shared_data).fewshot[0]
    path, records = part(chat=False, explanations=False)
    question = wording.question(item, "en", asks_letter=False)
    assert records[0] == {
        "id": item.id,
        "prompt": f"{wording.system('en')}\n{question}",
        "response": " " + wording.answer(item, as_letters=False),
    }
    assert question.endswith("Answer:")
    assert path != part()[0]  # the name tells the content
    assert path == part(chat=False, explanations=False)[0]


def test_sets_without_a_training_part_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mini:train: the set holds no questions but those it asks, expected a set"):
        write_training_part("mini:train", tmp_path, chat=True, explanations=True)
    with pytest.raises(ValueError, match=r"task: got 'pubmedq', expected one of .*; did you mean pubmedqa\?"):
        write_training_part("pubmedq:train", tmp_path, chat=True, explanations=True)


def test_asked_items_of_named_sets_and_of_all_at_hand(shared_data):
    mini = list(asked_items(("mini",)))
    assert len(mini) == 240  # Japanese and English
    japanese = load_task("mini", language="ja").items[0]
    assert mini[0].id == f"mini {japanese.id}"
    assert mini[0].stem == japanese.question
    assert set(japanese.choices) <= set(mini[0].details)
    assert list(asked_items(("none",))) == []
    every = {item.id.split()[0] for item in asked_items(("auto",), shared_data)}
    assert {"mini", "igakuqa", "denqa", "medqa", "medmcqa", "pubmedqa", "mmlu-medical", "jmmlu-medical"} <= every
