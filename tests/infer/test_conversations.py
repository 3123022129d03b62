"""Prompts as users write them, and what is refused before a model is asked."""

import json

import pytest
from tiny_checkpoint import write_checkpoint

from medjax.infer.conversations import asked, encode, read_conversations, with_system
from medjax.infer.language_model import load_model

ONE = [{"role": "user", "content": "Which?"}]


def read(*rows):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    return read_conversations(text, "p.jsonl", as_json=True)


def test_lines_and_objects():
    assert read_conversations("Which?\r\n\n どれ? \n", "p.txt", as_json=False) == [ONE, asked(" どれ? ")]
    several = [{"role": "system", "content": "s"}, *ONE, {"role": "assistant", "content": "a"}, *ONE]
    rows = {"prompt": "Which?\nThis?", "id": 7}, "", {"messages": several, "answer": "a"}
    assert read(*rows) == [asked("Which?\nThis?"), several]


def test_a_system_text_opens_what_has_none():
    assert with_system(ONE, "Be brief.") == [{"role": "system", "content": "Be brief."}, *ONE]
    own = [{"role": "system", "content": "own"}, *ONE]
    assert with_system(own, "Be brief.") == own
    assert with_system(ONE, None) == ONE


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Which?", r"p.jsonl, line 2: not JSON \(.*\); write one object a line, or plain text"),
        ({"text": "Which?"}, 'line 2: got text, expected an object with either "prompt" or "messages"'),
        ([1], "line 2: got a JSON list, expected an object"),
        ({"prompt": "x", "messages": ONE}, "line 2: got prompt, messages, expected an object with either"),
        ({"prompt": " "}, "line 2: prompt: got ' ', expected text"),
        ({"messages": []}, r"line 2: messages: got \[\], expected a list of messages"),
        ({"messages": [{"role": "doctor", "content": "x"}]}, "message 0: got .*doctor.*, expected a role"),
        ({"messages": [*ONE, {"role": "user"}]}, "message 1: got .*, expected a role .* and a content"),
        ({"messages": [{"role": "user", "content": ""}]}, "message 0: got the content '', expected text"),
        ({"messages": [*ONE, {"role": "assistant", "content": "x"}]}, "ends with the assistant, expected a user's"),
    ],
)
def test_errors_name_the_line(row, message):
    with pytest.raises(ValueError, match=message):
        read({"prompt": "Which?"}, row)


def test_no_prompt_at_all():
    with pytest.raises(ValueError, match=r"p.jsonl: got no prompt, expected one a line"):
        read("", " ")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3))


def test_a_prompt_is_rendered_by_the_chat_template_or_joined(model):
    conversation = with_system(ONE, "Be brief.")
    chat = model.tokenizer.decode(encode(model, conversation, "prompt", room=1), skip_special=False)
    assert chat == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    )
    plain = load_model(model.path, chat_template="none")
    assert plain.tokenizer.decode(encode(plain, conversation, "prompt", room=1)) == "Be brief.\nWhich?"


def test_prompts_that_cannot_be_asked(model):
    length = len(encode(model, ONE, "prompt", room=1))
    assert len(encode(model, ONE, "prompt", room=1024 - length)) == length
    with pytest.raises(ValueError) as caught:
        encode(model, ONE, "prompt 3", room=1025 - length)
    assert str(caught.value) == (
        f"prompt 3: got {length} tokens and {1025 - length} of an answer, expected at most the model's context of "
        f"1024; lower --max-new-tokens to {1024 - length} or less."
    )
    with pytest.raises(ValueError, match=r"and 1 of an answer, .* 1024; shorten it, or take a longer context"):
        encode(model, asked("Which?" * 600), "prompt", room=1)
    with pytest.raises(ValueError, match=r"prompt: got the text <\|im_end\|>, special tokens of this model"):
        encode(model, asked("x<|im_end|>"), "prompt", room=1)
