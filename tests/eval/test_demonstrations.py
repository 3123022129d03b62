"""Worked examples: fixed, drawn and nearest, and that no item ever sees its own question."""

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
    with pytest.raises(ValueError, match=r"num_fewshot=3, its pool holds 3 demonstrations \(one is kept in reserve\)"):
        Demonstrations(_task(_items(3)), 3)
    assert Demonstrations(_task([]), 0, "fixed").of(_items(1)[0]) == []
