"""Worked examples: fixed, drawn and nearest, and that no item ever sees its own question."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from medjax.data.exams.tasks import LoadedTask, load_task
from medjax.data.qa import Item
from medjax.eval.demonstrations import Demonstrations


def _task(items, pool=None, name="own"):
    return LoadedTask(
        name=name,
        language="ja",
        items=tuple(items),
        fewshot=tuple(items if pool is None else pool),
        pool_is_test=pool is None,
        digest="",
        files={},
        required_sections=(),
        cuts={},
        prohibited_max=0,
        exam_sizes={},
        dropped={},
        note="",
    )


def _items(count):
    return [Item(f"i{n}", f"Q{n}", ("x", "y"), ("a",)) for n in range(count)]


def test_demonstrations_are_shared_by_every_item_but_themselves():
    items = _items(30)
    task = _task(items)
    chosen = {item.id: [d.id for d in Demonstrations(task, 3).of(item)] for item in items}
    assert all(len(set(ids)) == 3 and name not in ids for name, ids in chosen.items())
    common = [ids for name, ids in chosen.items() if all(name not in other for other in chosen.values())]
    assert len(common) == 26  # three demonstrations and the one in reserve see other ones
    assert all(ids == common[0] for ids in common)
    for demo in common[0]:
        assert chosen[demo][:2] == [other for other in common[0] if other != demo]
    again = [d.id for d in Demonstrations(_task(items), 3).of(items[29])]
    assert again == chosen["i29"]
    orders = {tuple(d.id for d in Demonstrations(task, 3, seed=seed).of(items[7])) for seed in range(9)}
    assert len(orders) > 5


def test_a_pool_of_its_own_may_use_the_ids_of_the_set():
    items, pool = _items(5), [Item(f"i{n}", f"P{n}", ("x", "y"), ("b",)) for n in range(3)]
    task = _task(items, pool)
    for item in items:
        assert sorted(d.question for d in Demonstrations(task, 3).of(item)) == ["P0", "P1", "P2"]


def test_no_item_sees_its_own_question_under_another_id(shared_data):
    task = load_task("mmlu-medical", data_dir=shared_data)
    asked = [(item.context, item.question, item.choices) for item in task.items]
    assert (len(asked), len(set(asked))) == (1089, 1011)
    pool = {(demo.context, demo.question, demo.choices) for demo in task.fewshot}
    assert len(pool) == len(task.fewshot) == 1011
    twins = [item for item, key in zip(task.items, asked, strict=True) if asked.count(key) > 1]
    every = Demonstrations(task, 1010)
    for item in twins[::12]:
        demos = every.of(item)  # all but the one in reserve
        assert len(demos) == 1010
        assert (item.context, item.question, item.choices) not in [(d.context, d.question, d.choices) for d in demos]


def test_a_pool_of_its_own_is_left_without_what_is_asked():
    items = _items(3)
    (demo,) = Demonstrations(_task(items, [replace(items[1], id="x"), *_items(1)]), 2, "fixed").of(items[1])
    assert demo.question == "Q0"


def test_jmmlu_100_gets_as_many_demonstrations_as_asked_for(shared_data):
    task = load_task("jmmlu-medical-100", data_dir=shared_data)
    assert {item.id for item in task.items} & {demo.id for demo in task.fewshot}
    for item in task.items:
        demos = Demonstrations(task, 5).of(item)
        assert len(demos) == 5
        assert item.question not in [demo.question for demo in demos]


def test_a_pool_that_is_too_small():
    with pytest.raises(
        ValueError, match=r"num_fewshot=3, expected at most 2: its pool holds 3, of which one is kept in reserve; ask"
    ):
        Demonstrations(_task(_items(3)), 3)
    assert Demonstrations(_task([]), 0, "fixed").of(_items(1)[0]) == []


# fixed and nearest


def test_examples_by_the_authors_are_shown_unless_told_otherwise():
    task = _task(_items(3), [Item(f"p{n}", f"P{n}", ("x", "y"), ("a",)) for n in range(20)])
    drawn, theirs = (Demonstrations(t, 4).of(task.items[0]) for t in (task, replace(task, pool_by_authors=True)))
    assert [d.id for d in theirs] == ["p0", "p1", "p2", "p3"] != [d.id for d in drawn]
    # no set is known by its name
    named = replace(task, name="igakuqa")
    assert [d.id for d in Demonstrations(named, 4).of(task.items[0])] != ["p0", "p1", "p2", "p3"]


def test_fixed_takes_the_first_of_the_pool():
    task = _task(_items(9))
    assert [d.id for d in Demonstrations(task, 2, "fixed").of(task.items[7])] == ["i0", "i1"]
    assert [d.id for d in Demonstrations(task, 2, "fixed").of(task.items[1])] == ["i0", "i2"]


def _slow_cosine(one, two):
    def counts(text):
        text = text.replace(" ", "").lower()
        return Counter(text[i : i + n] for n in (2, 3, 4) for i in range(len(text) + 1 - n))

    a, b = counts(one), counts(two)
    norms = [math.sqrt(sum(v * v for v in x.values())) for x in (a, b)]
    return sum(a[gram] * b[gram] for gram in a) / (math.prod(norms) or 1)


def test_nearest_is_the_order_of_the_plain_cosine():
    draw = random.Random(0)
    words = ["fever", "chest pain", "心電図で異常", "呼吸困難を認める", "発熱", "dyspnoea", "浮腫", "Xp", "a"]
    items = [Item(f"i{n}", " ".join(draw.choices(words, k=4)), ("x", "y"), ("a",)) for n in range(60)]
    near = Demonstrations(_task(items), 4, "nearest")
    for item in items[:20]:
        others = [other for other in items if other.asked != item.asked]
        ranked = sorted(others, key=lambda other: -_slow_cosine(item.question, other.question))
        shown = near.of(item)
        similar = [_slow_cosine(item.question, other.question) for other in shown]
        assert similar == pytest.approx([_slow_cosine(item.question, o.question) for o in ranked[3::-1]], rel=1e-12)
        assert item.asked not in [other.asked for other in shown]


def test_of_equals_the_first_of_the_pool_is_nearest_and_the_nearest_stands_last():
    questions = ["fever and cough", "ＦＥＶＥＲ and  cough", "edema", "fever", "fever and cough"]
    pool = [Item(f"p{n}", question, ("x", str(n)), ("a",)) for n, question in enumerate(questions)]
    asked = Item("q", "Fever and cough?", ("x", "y"), ("a",))
    assert [d.id for d in Demonstrations(_task([asked], pool), 3, "nearest").of(asked)] == ["p4", "p1", "p0"]
    blank = Item("b", "?", ("x", "y"), ("a",))  # similar to nothing
    assert [d.id for d in Demonstrations(_task([blank], pool), 2, "nearest").of(blank)] == ["p1", "p0"]


def test_a_context_is_part_of_what_is_similar():
    pool = [Item(f"p{n}", "Is it?", ("x", "y"), ("a",), context=text) for n, text in enumerate(["edema", "jaundice"])]
    asked = Item("q", "Is it?", ("x", "y"), ("a",), context="Neonatal jaundice.")
    (demo,) = Demonstrations(_task([asked], pool), 1, "nearest").of(asked)
    assert demo.id == "p1"


def test_igakuqa_shows_its_authors_examples_unless_told_otherwise(shared_data):
    task = load_task("igakuqa", years=[2022], sections=["A"], data_dir=shared_data)
    shown = {how: [d.id for d in Demonstrations(task, 3, how).of(task.items[0])] for how in (None, "fixed", "random")}
    assert shown[None] == shown["fixed"] == ["100E5", "100A60", "100A1"]
    assert sorted(shown["random"]) == sorted(shown["fixed"])


def test_an_unknown_choice_of_examples():
    with pytest.raises(ValueError, match="fewshot: got 'closest', expected one of fixed, random, nearest"):
        Demonstrations(_task(_items(4)), 1, "closest")
