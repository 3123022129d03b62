"""Prompts to the byte: the IgakuQA authors' format and medjax's own; how choices are ranked; ids."""

import hashlib
import json
import math
from dataclasses import replace

import pytest

from medjax.data.exams.tasks import load_task
from medjax.data.qa import Item
from medjax.data.text.chat import ChatTemplate
from medjax.eval.demonstrations import Demonstrations
from medjax.eval.protocols import Protocol, normalised, pick
from medjax.eval.settings import ProtocolSettings
from medjax.eval.templates import PromptTemplate

FIVE = ("肺炎", "喘息", "肺塞栓", "気胸", "心不全")
DEMOS = (
    Item("d1", "一つはどれか。", ("い", "ろ", "は", "に", "ほ"), ("e",)),
    Item("d2", "二つはどれか。", ("ア", "イ", "ウ", "エ", "オ"), ("a", "b")),
)
ITEM = Item("q", "正しいのはどれか。2つ選べ。", FIVE, ("b", "d"))
NUMBER = Item("n", "BMIを求めよ。", (), ("25",))
AS_JSON = ChatTemplate("{{ messages | tojson }}", None, None)  # shows the conversation itself


def _protocol(name, template=None, **settings):
    return Protocol(name, ProtocolSettings(**settings), [PromptTemplate(template)] if template else ())


def _prompt(name, item, *, demos=(), language="ja", chat=None, template=None, **settings):
    return _protocol(name, template, **settings).prompt(item, demos, language, chat)


# kasai: the bytes of jungokasai/IgakuQA


def test_kasai_completion_form():
    prompt = _prompt("kasai", ITEM, demos=DEMOS)
    assert prompt.text == (
        "医師国家試験を解きます。\n"
        "問題: 一つはどれか。\na: い\nb: ろ\nc: は\nd: に\ne: ほ\n"
        "必ずa,b,c,d,eの中からちょうど1個選んでください。\n答え:\n"
        "e\n"
        "問題: 二つはどれか。\na: ア\nb: イ\nc: ウ\nd: エ\ne: オ\n"
        "必ずa,b,c,d,eの中からちょうど2個選んでください。\n答え:\n"
        "a,b\n"
        "問題: 正しいのはどれか。2つ選べ。\na: 肺炎\nb: 喘息\nc: 肺塞栓\nd: 気胸\ne: 心不全\n"
        "必ずa,b,c,d,eの中からちょうど2個選んでください。\n答え:"
    )
    assert (prompt.continuations, prompt.is_chat) == ((), False)


def test_kasai_chat_messages():
    prompt = _prompt("kasai", ITEM, demos=DEMOS[:1], chat=AS_JSON)
    assert prompt.is_chat
    assert json.loads(prompt.text) == [
        {"role": "system", "content": "医師国家試験を解きます。"},
        {
            "role": "user",
            "content": "問題: 一つはどれか。\na: い\nb: ろ\nc: は\nd: に\ne: ほ\n"
            "必ずa,b,c,d,eの中からちょうど1個選んでください。\n答え:",
        },
        {"role": "assistant", "content": "e"},
        {
            "role": "user",
            "content": "問題: 正しいのはどれか。2つ選べ。\na: 肺炎\nb: 喘息\nc: 肺塞栓\nd: 気胸\ne: 心不全\n"
            "必ずa,b,c,d,eの中からちょうど2個選んでください。\n答え:",
        },
    ]


def test_kasai_english():
    item = Item("q", "Which one?", ("v", "w", "x", "y", "z"), ("a", "c", "d"))
    assert _prompt("kasai", item, language="en").text == (
        "Let's try Japan's medical license exam.\n"
        "Problem: Which one?\na: v\nb: w\nc: x\nd: y\ne: z\n"
        "Choose exactly 3 correct choice(s) from a, b, c, d, e.\nAnswer:"
    )


@pytest.mark.parametrize("count", [6, 8])
def test_kasai_names_five_letters_whatever_the_choices(count):
    choices = tuple("一二三四五六七八"[:count])
    lines = [f"{letter}: {text}" for letter, text in zip("abcdefgh", choices, strict=False)]
    text = _prompt("kasai", Item("q", "どれか。", choices, ("f",))).text
    assert text == (
        "医師国家試験を解きます。\n問題: どれか。\n"
        + "\n".join(lines)
        + "\n必ずa,b,c,d,eの中からちょうど1個選んでください。\n答え:"
    )


def test_kasai_sends_only_the_text_of_a_numeric_item_and_keeps_a_context():
    assert _prompt("kasai", NUMBER).text == "医師国家試験を解きます。\n問題: BMIを求めよ。"
    assert _prompt("kasai", Item("n", "Value?", (), ("3",)), language="en").text.endswith("\nProblem: Value?")
    item = Item("q", "Is it?", ("yes", "no"), ("a",), context="An abstract.")
    assert "\nProblem: An abstract.\nIs it?\na: yes\nb: no\n" in _prompt("kasai", item, language="en").text


@pytest.mark.parametrize(
    ("language", "suffix", "prompt_file", "system", "head", "ask"),
    [
        (
            *("ja", "", "prompt.jsonl", "医師国家試験を解きます。", "問題: "),
            "必ずa,b,c,d,eの中からちょうど{}個選んでください。\n答え:",
        ),
        (
            *("en", "_en", "prompt_translate.jsonl", "Let's try Japan's medical license exam.", "Problem: "),
            "Choose exactly {} correct choice(s) from a, b, c, d, e.\nAnswer:",
        ),
    ],
)
def test_kasai_3_shot_on_the_published_files(shared_data, language, suffix, prompt_file, system, head, ask):
    def rows(*path):
        return [json.loads(line) for line in shared_data.joinpath("igakuqa", *path).read_text("utf-8").splitlines()]

    def user(row):
        if not row["choices"]:
            return head + row["problem_text" + suffix]
        lines = "".join(f"{'abcdefgh'[i]}: {text}\n" for i, text in enumerate(row["choices" + suffix]))
        return head + row["problem_text" + suffix] + "\n" + lines + ask.format(len(row["answer"]))

    demos = rows("scripts", "prompts", prompt_file)
    assert [(row["problem_id"], row["answer"]) for row in demos] == [
        ("100E5", ["e"]),
        ("100A60", ["a", "b"]),
        ("100A1", ["c"]),
    ]
    messages = [{"role": "system", "content": system}]
    for row in demos:
        messages.append({"role": "user", "content": user(row)})
        messages.append({"role": "assistant", "content": ",".join(row["answer"])})
    published = {}
    for year, exam in ((2018, 112), (2019, 113), (2020, 114), (2022, 116)):
        for section in "ACF":
            for row in rows("data", str(year), f"{exam}-{section}.jsonl"):
                published[row["problem_id"]] = row
            if suffix:
                for row in rows("data", str(year), f"{exam}-{section}_translate.jsonl"):
                    published[row["problem_id"]] |= row
    task = load_task("igakuqa", language=language, data_dir=shared_data)
    protocol, every = _protocol("kasai", num_fewshot=3), Demonstrations(task, 3, seed=5)
    kinds = set()
    for item in task.items:
        if item.id in published:
            shots = every.of(item)
            expected = [*messages, {"role": "user", "content": user(published[item.id])}]
            assert json.loads(protocol.prompt(item, shots, language, AS_JSON).text) == expected, item.id
            joined = "\n".join(message["content"] for message in expected)
            assert protocol.prompt(item, shots, language, None).text == joined, item.id
            kinds.add((len(item.choices), item.num_answers))
    assert {(5, 1), (5, 2), (5, 3), (6, 1), (8, 1), (0, 1)} <= kinds


# the own wording of strict and choice-logprob


def test_strict_tells_how_to_answer():
    assert _prompt("strict", ITEM).text == (
        "医学の試験問題に答えます。\n"
        "問題: 正しいのはどれか。2つ選べ。\na. 肺炎\nb. 喘息\nc. 肺塞栓\nd. 気胸\ne. 心不全\n"
        "正しい選択肢の記号を2つ、コンマで区切って答えてください。\n答え:"
    )
    assert _prompt("strict", DEMOS[0]).text.endswith("e. ほ\n正しい選択肢の記号を1つだけ答えてください。\n答え:")
    assert _prompt("strict", NUMBER).text == (
        "医学の試験問題に答えます。\n問題: BMIを求めよ。\n数値だけを答えてください。\n答え:"
    )
    item = Item("q", "Which?", ("x", "y", "z"), ("a", "b"), context="A case.")
    assert _prompt("strict", item, language="en").text == (
        "You answer medical examination questions.\nA case.\nQuestion: Which?\na. x\nb. y\nc. z\n"
        "Reply with the letters of the 2 correct choices only, separated by commas.\nAnswer:"
    )


def test_a_demonstration_is_answered_where_the_model_answers():
    shown = _prompt("strict", ITEM, demos=DEMOS[1:]).text
    assert "\n答え: a,b\n問題: 正しい" in shown
    scored = _prompt("choice-logprob", ITEM, demos=DEMOS[1:])
    assert "\ne. オ\n答え: ア,イ\n問題: 正しい" in scored.text
    assert scored.continuations[0] == " 肺炎"
    letters = _prompt("choice-logprob", ITEM, demos=DEMOS[1:], continuation="letter")
    assert "\n答え: a,b\n" in letters.text
    assert letters.continuations == (" a", " b", " c", " d", " e")
    template = _prompt("choice-logprob", ITEM, demos=DEMOS[:1], template="Q {{question}}\nA:\n")
    assert template.text == "Q 一つはどれか。\nA:\nほ\nQ 正しいのはどれか。2つ選べ。\nA:\n"
    assert template.continuations == FIVE


@pytest.mark.parametrize(
    ("template", "first"),
    [("{{question}}\n", "肺炎"), ("{{question}} ", "肺炎"), ("{{question}}　", "肺炎"), ("{{question}}:", " 肺炎")],
)
def test_a_continuation_begins_with_a_blank_unless_one_stands_before_it(template, first):
    assert _prompt("choice-logprob", ITEM, template=template).continuations[0] == first


def test_chat_continuations_stand_flush_after_the_turn_opens():
    chat = ChatTemplate(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        None,
        None,
    )
    prompt = _prompt("choice-logprob", ITEM, demos=DEMOS[:1], chat=chat)
    assert prompt.text.endswith("e. 心不全\n答え:\n<|assistant|>\n")
    assert "<|assistant|>\nほ\n<|user|>" in prompt.text
    assert prompt.continuations == FIVE


def test_a_blank_choice_is_scored_by_its_letter(shared_data):
    (item,) = [i for i in load_task("igakuqa", years=[2020], data_dir=shared_data).items if i.id == "114C11"]
    prompt = _prompt("choice-logprob", item)
    assert prompt.continuations == (" a", " b", " c", " d", " ｅ")
    assert _prompt("kasai", item).text.count(": \u3000\n") == 4


def test_texts_are_stripped_and_numeric_items_have_nothing_to_score():
    item = Item("q", "?", (" x ", "\u3000", "y\n"), ("a",))
    assert _prompt("choice-logprob", item).continuations == (" x", " b", " y")
    assert _prompt("choice-logprob", NUMBER).continuations == ()


# reasoning


def test_cot_asks_for_reasoning_and_the_answer_on_a_last_line():
    assert _prompt("cot", ITEM).text == (
        "医学の試験問題に答えます。\n"
        "問題: 正しいのはどれか。2つ選べ。\na. 肺炎\nb. 喘息\nc. 肺塞栓\nd. 気胸\ne. 心不全\n"
        "段階的に考え、最後の行に「答え: 」に続けて正しい選択肢の記号を2つ、コンマで区切って書いてください。\n考え方:"
    )
    assert _prompt("cot", NUMBER, language="en").text == (
        "You answer medical examination questions.\nQuestion: BMIを求めよ。\n"
        'Think step by step. On the last line write "Answer: " and the number only.\nReasoning:'
    )
    assert _protocol("cot").reasoning_stop(False) == ("\n問題:", "\nQuestion:")
    assert _protocol("cot").reasoning_stop(True) == ()


def test_a_worked_example_of_cot_shows_its_explanation():
    explained = replace(DEMOS[1], explanation="アとイである。\n")
    text = _prompt("cot", ITEM, demos=(explained, DEMOS[0])).text
    assert "\n考え方: アとイである。\n答え: a,b\n問題: 一つはどれか。" in text
    assert "1つだけ書いてください。\n考え方: 答え: e\n問題: 正しいのは" in text
    chat = json.loads(_prompt("cot", ITEM, demos=(explained,), chat=AS_JSON).text)
    assert chat[2] == {"role": "assistant", "content": "アとイである。\n答え: a,b"}


# ranking and ids


def test_normalised_divides_by_tokens_bytes_and_characters():
    values = normalised([-6.0, -4.0, -3.0], ["心不全", "abcde", ""], [4, 1, 0])
    assert values["sum"] == [-6.0, -4.0, -3.0]
    assert values["token"] == [-1.5, -4.0, -3.0]
    assert values["byte"] == pytest.approx([-6 / 9, -4 / 5, -3.0], rel=1e-15)
    assert values["character"] == pytest.approx([-2.0, -0.8, -3.0], rel=1e-15)


def test_pick_takes_the_largest_and_the_first_of_a_tie():
    assert pick([-3.0, -1.0, -2.0], "abc", 1) == ("b",)
    assert pick([-3.0, -1.0, -2.0], "abc", 2) == ("b", "c")
    assert pick([-1.0, -2.0, -1.0, -1.0], "abcd", 2) == ("a", "c")
    assert pick([-math.inf, -math.inf], "ab", 1) == ("a",)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("kasai", {"num_fewshot": 3}, "kasai-3shot"),
        ("strict", {}, "strict-0shot"),
        ("strict", {"max_new_tokens": 32}, "strict-32tokens-0shot"),  # where lists have room for 512
        ("strict", {"max_new_tokens": 512}, "strict-512tokens-0shot"),
        ("gestalt", {"max_new_tokens": 256}, "gestalt-256tokens-0shot"),
        ("choice-logprob", {"max_new_tokens": 9}, "choice-logprob-0shot"),
        ("choice-logprob", {"continuation": "letter", "num_fewshot": 2}, "choice-logprob-letter-2shot"),
        ("choice-logprob", {"normalise": "byte"}, "choice-logprob-per-byte-0shot"),
        ("cot", {}, "cot-0shot"),
        ("cot", {"think_tokens": 512}, "cot-0shot"),
        ("cot", {"think_tokens": 2048, "max_new_tokens": 64}, "cot-64tokens-2048think-0shot"),
        ("strict", {"think_tokens": 9}, "strict-0shot"),
        ("strict", {"rotate": True}, "strict-rotated-0shot"),
        ("choice-logprob", {"rotate": True, "num_fewshot": 3}, "choice-logprob-rotated-3shot"),
        ("strict", {"samples": 5, "temperature": 0.7}, "strict-5samples-t0.7-0shot"),
        ("cot", {"samples": 3, "temperature": 1.0, "top_p": 0.95}, "cot-3samples-t1-p0.95-0shot"),
        ("strict", {"temperature": 0.5}, "strict-1samples-t0.5-0shot"),
        ("strict", {"top_p": 0.5}, "strict-0shot"),  # greedy all the same
        ("strict", {"num_fewshot": 3, "fewshot": "nearest"}, "strict-nearest-3shot"),
        ("strict", {"fewshot": "nearest"}, "strict-0shot"),
    ],
)
def test_ids_say_what_makes_scores_differ(name, settings, expected):
    assert _protocol(name, **settings).id == expected


def test_two_templates_have_two_ids():
    source = "{{question}}"
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert _protocol("strict", source).id == f"strict-template-{digest[:8]}-0shot"
    assert _protocol("strict", source + " ").id != _protocol("strict", source).id


def test_refused_protocols():
    with pytest.raises(
        ValueError, match="protocol: got 'kasia', expected one of strict, cot, choice-logprob, kasai, gestalt"
    ):
        _protocol("kasia")
    with pytest.raises(ValueError, match="got num_fewshot=1 under gestalt, expected 0"):
        _protocol("gestalt", num_fewshot=1)
    with pytest.raises(ValueError, match=r"choice-logprob draws no answers, got temperature 0\.7"):
        _protocol("choice-logprob", samples=3, temperature=0.7)


def test_what_gestalt_asks_and_how_answers_stop():
    gestalt, strict = _protocol("gestalt"), _protocol("strict")
    long = Item("l", "あ" * 1025, FIVE, ("a",))
    four = Item("f", "?", FIVE[:4], ("a",))
    image = Item("i", "?", FIVE, ("a",), needs_image=True)
    assert [gestalt.asks(item, "ja") for item in (ITEM, long, four, image, NUMBER)] == [True, *[False] * 4]
    assert gestalt.asks(long, "en")
    assert strict.asks(image, "ja")
    assert gestalt.prompt(ITEM, (), "ja", None).text == (
        "### 質問\n正しいのはどれか。2つ選べ。\n### 選択肢\n肺炎,喘息,肺塞栓,気胸,心不全\n### 正しい選択肢の文\n"
    )
    assert (gestalt.room([ITEM]), strict.room([ITEM, NUMBER])) == (256, 32)
    assert (gestalt.stop(True), strict.stop(False), strict.stop(True)) == (("\n",), ("\n",), ())
