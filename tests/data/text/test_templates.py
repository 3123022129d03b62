"""Templates: the exact text of each, and which of its characters count for the loss."""

import pytest

from medjax.data.text.chat import ChatTemplate
from medjax.data.text.records import Conversation, Message, Pair, Passage
from medjax.data.text.templates import Rendered, Segment, Template, load_template
from medjax.data.text.tokenizer import load_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% else %}"
    " {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
COLON = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
FORGETS = (
    "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|im_start|>{{ m.content }}<|im_end|>"
    "{% endif %}{% endfor %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")


def chat(source: str) -> Template:
    return Template("chat", chat=ChatTemplate(source, "<s>", "</s>", name="chat template"), specials=SPECIALS)


def talk(*turns: tuple[str, str]) -> Conversation:
    return Conversation("c", "talks.jsonl, line 4", tuple(Message(*turn) for turn in turns))


TALK = talk(("system", "答えよ。"), ("user", "痛む?"), ("assistant", "はい"), ("user", "どこ?"), ("assistant", "胸"))


def counted(rendered: Rendered) -> list[str]:
    return [segment.text for segment in rendered.segments if segment.counted]


def text(rendered: Rendered) -> str:
    return "".join(segment.text for segment in rendered.segments)


def test_chat_counts_assistant_turns_with_their_end():
    rendered = chat(CHATML).render(TALK)
    assert rendered == Rendered(
        (
            Segment(
                "<|im_start|>system\n答えよ。<|im_end|>\n<|im_start|>user\n痛む?<|im_end|>\n<|im_start|>assistant\n",
                False,
            ),
            Segment("はい<|im_end|>", True),
            Segment("\n<|im_start|>user\nどこ?<|im_end|>\n<|im_start|>assistant\n", False),
            Segment("胸<|im_end|>", True),
            Segment("\n", False),
        ),
        is_chat=True,
        ends=False,
    )
    llama = chat(LLAMA).render(TALK)
    assert text(llama) == "<s>[INST] 答えよ。\n\n痛む? [/INST] はい </s>[INST] どこ? [/INST] 胸 </s>"
    assert counted(llama) == [" はい </s>", " 胸 </s>"]


def test_turn_without_an_end_token_counts_to_where_the_template_stops():
    assert counted(chat(COLON).render(TALK)) == ["assistant: はい\n", "assistant: 胸\n"]


def test_pairs_and_trimmed_contents_in_a_chat():
    pair = Pair("p", "a.jsonl, line 1", "要約せよ。", "胸痛の患者。", " 痛い\n")
    rendered = chat(CHATML).render(pair)
    assert text(rendered).startswith("<|im_start|>user\n要約せよ。\n\n胸痛の患者。<|im_end|>\n")
    assert counted(rendered) == [" 痛い\n<|im_end|>"]
    trimming = CHATML.replace("m.content", "(m.content | trim)")
    assert counted(chat(trimming).render(pair)) == ["痛い<|im_end|>"]
    empty = talk(("user", "痛む?"), ("assistant", ""))
    assert counted(chat(CHATML).render(empty)) == ["<|im_end|>"]


def test_user_after_the_last_answer_is_not_counted():
    rendered = chat(CHATML).render(talk(("user", "a"), ("assistant", "b"), ("user", "b")))
    assert counted(rendered) == ["b<|im_end|>"]
    assert text(rendered).endswith("\n<|im_start|>user\nb<|im_end|>\n")


@pytest.mark.parametrize(
    ("template", "record", "message"),
    [
        (FORGETS, TALK, r"line 4: chat template writes the conversation up to message 3 differently once more follows"),
        (CHATML, talk(("assistant", "a")), r"line 4: got a conversation that the assistant opens, expected a system"),
        (
            CHATML,
            talk(("user", "a<|im_end|>"), ("assistant", "b</s>")),
            r"line 4: got the text <\|im_end\|>, </s>, special tokens of this model, expected none inside a chat",
        ),
        (CHATML, Pair("p", "b.jsonl, line 9", "a", "<s>", "b"), r"b\.jsonl, line 9: got the text <s>, special"),
        ("{{ raise_exception('no') }}", TALK, r"talks\.jsonl, line 4: chat template: TemplateError: no; got the roles"),
    ],
)
def test_chats_that_are_refused(template, record, message):
    with pytest.raises(ValueError, match=message):
        chat(template).render(record)


def test_forms_to_the_last_byte():
    with_input = Pair("p", "w", "要約{input}せよ", "症例{instruction}", "肺炎")
    without = Pair("p", "w", "診断は?", "", "肺炎")
    expected = {
        "plain": ("要約{input}せよ\n\n症例{instruction}", "診断は?"),
        "alpaca": (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\n要約{input}せよ\n\n"
            "### Input:\n症例{instruction}\n\n### Response:\n",
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n診断は?\n\n### Response:\n",
        ),
        "jallm": (
            "以下はタスクを説明する指示とさらなる文脈を適用する入力の組み合わせです。"
            "要求を適切に満たすような返答を書いてください。\n\n"
            "### 指示:\n要約{input}せよ\n\n### 入力:\n症例{instruction}\n\n### 返答:\n",
            "以下はタスクを説明する指示です。要求を適切に満たすような返答を書いてください。\n\n"
            "### 指示:\n診断は?\n\n### 返答:\n",
        ),
        "swallow": (
            "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。\n\n"
            "### 指示:\n要約{input}せよ\n\n### 入力:\n症例{instruction}\n\n### 応答:\n",
            "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。\n\n"
            "### 指示:\n診断は?\n\n### 応答:\n",
        ),
    }
    for name, prompts in expected.items():
        for pair, prompt in zip((with_input, without), prompts, strict=True):
            assert Template(name).render(pair) == Rendered(
                (Segment(prompt, False), Segment("肺炎", True)), is_chat=False, ends=True
            )


def test_conversations_of_one_turn_fit_a_form():
    one = talk(("system", "医師である。"), ("user", "痛む<s>"), ("assistant", "はい"))
    assert [segment.text for segment in Template("plain").render(one).segments] == ["医師である。\n\n痛む<s>", "はい"]
    with pytest.raises(ValueError, match=r"line 4: got a conversation of system, user, assistant, user, .* one turn"):
        Template("alpaca").render(TALK)


def test_plain_text_is_the_same_under_every_template():
    passage = Passage("t", "w", "本文<|im_end|>")
    for template in (chat(CHATML), Template("plain"), Template("jallm")):
        assert template.render(passage) == Rendered((Segment("本文<|im_end|>", True),), is_chat=False, ends=True)


def test_template_of_a_tokenizer(byte_level_folder, sentencepiece_folder):
    template = load_template("chat", load_tokenizer(byte_level_folder))
    assert counted(template.render(TALK)) == [
        "<|im_start|>assistant\nはい<|im_end|>",
        "<|im_start|>assistant\n胸<|im_end|>",
    ]
    with pytest.raises(ValueError, match=r"line 4: got the text <\|endoftext\|>, special"):
        template.render(talk(("user", "<|endoftext|>")))
    with pytest.raises(ValueError, match="got chat, but this tokenizer has no chat template"):
        load_template("chat", load_tokenizer(sentencepiece_folder))
    with pytest.raises(ValueError, match="got 'alpacca', expected one of chat, plain, alpaca, jallm, swallow"):
        Template("alpacca")


def test_date_of_a_chat_template_stands_still(byte_level_folder):
    tokenizer = load_tokenizer(byte_level_folder)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    assert text(load_template("chat", tokenizer).render(TALK)).startswith("26 Jul 2024<|im_start|>system")
