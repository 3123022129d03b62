"""What docs/protocols.md and docs/exams.md show is what the code does."""

import json
import re
from pathlib import Path

import pytest

from medjax.data.exams import wording
from medjax.data.exams.rows import Files
from medjax.data.exams.tasks import TASKS, load_task
from medjax.data.qa import KINDS, Item, read_jsonl
from medjax.eval.metrics import METRICS
from medjax.eval.protocols import Protocol
from medjax.eval.settings import ProtocolSettings
from medjax.eval.templates import PromptTemplate

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _blocks(name):
    """Fenced blocks by what stands after the fence."""
    text = (DOCS / name).read_text("utf-8")
    return {match[1]: match[2] for match in re.finditer(r"^```(\w+(?: [\w-]+)?)\n(.*?)^```$", text, re.M | re.S)}


PROTOCOLS, EXAMS = _blocks("protocols.md"), _blocks("exams.md")


def _item():
    row = json.loads(PROTOCOLS["json"])
    return Item(row["id"], row["question"], tuple(row["choices"]), tuple(row["answer"]))


@pytest.mark.parametrize(
    "name", ["strict", "strict-en", "cot", "cot-en", "choice-logprob", "kasai", "kasai-en", "gestalt"]
)
def test_the_prompts_shown_are_the_prompts_sent(name):
    language = "en" if name.endswith("-en") else "ja"
    protocol = Protocol(name.removesuffix("-en"), ProtocolSettings())
    text = protocol.prompt(_item(), (), language, None).text
    # the fence stands on a line of its own; only gestalt's prompt itself ends with a newline
    assert text.endswith("\n") == (name == "gestalt")
    assert PROTOCOLS[f"text {name}"] == text.removesuffix("\n") + "\n"


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize(("kind", "answer"), [("entities", ("x",)), ("similarity", ("1",))])
def test_what_is_asked_of_other_kinds_is_shown(kind, answer, language):
    item = Item("q", "Q", (), answer, kind=kind)
    line = wording.question(item, language, asks_letter=True).splitlines()[-2]
    assert PROTOCOLS[f"text {kind}{'' if language == 'ja' else '-en'}"] == line + "\n"


def test_the_template_shown_fills_in_every_choice():
    filled = PromptTemplate(PROTOCOLS["text template"]).render(_item())
    assert filled == (
        "Question: 正しいのはどれか。2つ選べ。\n(a) 肺炎\n(b) 喘息\n(c) 肺塞栓\n(d) 気胸\n(e) 心不全\nAnswer:\n"
    )


def test_the_exam_shown_is_read(tmp_path):
    path = tmp_path / "ward.jsonl"
    path.write_text(EXAMS["jsonl"], "utf-8")
    one, two, three = read_jsonl(path)
    assert (one.answer, one.points, one.section, one.category) == (("a",), 3, "required", "cardiology")
    assert (two.answer, two.prohibited, two.points) == (("a", "c"), ("b",), 1)
    assert (three.answer, three.is_numeric, three.context) == ((f"{64 / 1.6**2:.1f}",), True, "健康診断の結果を示す。")
    assert load_task(str(path)).cuts == {}
    path.write_text(EXAMS["jsonl"] + EXAMS["json bad"], "utf-8")
    with pytest.raises(ValueError) as caught:
        read_jsonl(path)
    assert str(caught.value) == f"{tmp_path}/{EXAMS['text error'].strip()}"


def test_the_kinds_shown_are_read_and_graded_as_shown(tmp_path):
    path = tmp_path / "ward.jsonl"
    path.write_text(EXAMS["jsonl kinds"], "utf-8")
    assert [item.kind for item in read_jsonl(path)] == ["entities", "similarity", "text"]
    shown = dict(re.findall(r"^\| `(\w+)` \| .*? \| ((?:`\w+`(?:, )?)+)", _part("### Questions without"), re.M))
    names = {kind: tuple(re.findall(r"`(\w+)`", metrics)) for kind, metrics in shown.items()}
    assert set(names) == set(KINDS)
    assert load_task(str(path)).metrics == names["entities"] + names["similarity"] + names["text"]
    assert set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", _part("### Metrics"), re.M)) >= {"`bleu`, `chrf`", "`kappa`"}
    assert set(re.findall(r"`(\w+)`(?=.*\|.*\|)", _part("### Metrics"))) >= set(METRICS)


def _part(heading):
    return (DOCS / "exams.md").read_text("utf-8").partition(heading)[2].partition("\n##")[0]


def test_the_table_of_sets_is_complete_and_its_counts_are_right(shared_data):
    table, _, provided = _part("## Sets that are built in").partition("Sets that are fetched or that you provide")
    counted = set()
    for names, languages, items in re.findall(r"^\| (`[a-z].*?) \| (.*?) \| ([\d,]+)", table, re.M):
        for name in re.findall(r"`(.*?)`", names):
            task = TASKS[name]
            assert tuple(re.findall(r"\b(ja|en)\b", languages)) == task.languages
            assert len(task.read(Files(shared_data), task.languages[0]).items) == int(items.replace(",", ""))
            counted.add(name)
    rows = re.findall(r"^\| (`[a-z].*?) \|", provided, re.M)
    others = {name for row in rows for name in re.findall(r"`(.*?)`", row)}
    assert counted | others == set(TASKS)
    assert not counted & others
