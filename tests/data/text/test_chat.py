"""Chat templates: exact text, the system role, and what the sandbox refuses."""

from datetime import datetime

import pytest

from medjax.data.text.chat import ChatTemplate
from medjax.data.text.tokenizer import load_tokenizer

CHATML = (
    "{%- for message in messages %}\n"
    "    {%- if message['role'] == 'tool' %}\n"
    "        {%- continue %}\n"
    "    {%- endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content | trim }} [/INST]"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
USER = {"role": "user", "content": "胸痛の原因はどれか。"}
SYSTEM = {"role": "system", "content": "記号で答えよ。"}


def chat(source: str, **options: object) -> ChatTemplate:
    return ChatTemplate(source, "<s>", "</s>", **options)


def test_render_with_and_without_generation_prompt():
    template = chat(CHATML)
    turns = [SYSTEM, USER, {"role": "assistant", "content": "a"}]
    text = (
        "<|im_start|>system\n記号で答えよ。<|im_end|>\n<|im_start|>user\n胸痛の原因はどれか。<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>\n"
    )
    assert template.render(turns, add_generation_prompt=False) == text
    assert template.render(turns) == text + "<|im_start|>assistant\n"


def test_system_role_is_folded_where_it_is_refused_or_dropped():
    assert chat(CHATML).supports_system()
    refusing, dropping = chat(LLAMA), chat(DROPS_SYSTEM)
    assert not refusing.supports_system()
    assert not dropping.supports_system()
    assert refusing.render([SYSTEM, USER]) == "<s>[INST] 記号で答えよ。\n\n胸痛の原因はどれか。 [/INST]"
    assert dropping.render([SYSTEM, USER]) == "user: 記号で答えよ。\n\n胸痛の原因はどれか。\n"
    assert refusing.render([SYSTEM]) == "<s>[INST] 記号で答えよ。 [/INST]"
    assert refusing.render([USER, {"role": "assistant", "content": "a"}, USER]) == (
        "<s>[INST] 胸痛の原因はどれか。 [/INST]a</s>[INST] 胸痛の原因はどれか。 [/INST]"
    )


def test_messages_given_are_not_changed():
    messages = [dict(SYSTEM), dict(USER)]
    chat(LLAMA).render(messages)
    assert messages == [SYSTEM, USER]


def test_rendered_bos_is_not_doubled(sentencepiece_folder):
    tokenizer = load_tokenizer(sentencepiece_folder)
    text = ChatTemplate(LLAMA, tokenizer.bos_token, tokenizer.eos_token).render([USER])
    ids = tokenizer.encode(text, bos=False, special=True)
    assert (ids[0], ids.count(1)) == (1, 1)
    assert tokenizer.encode(text, special=True) == ids


def test_template_blocks_leave_no_blank_lines():
    source = "{% for m in messages %}\n    {% if m.content %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    assert chat(source).render([USER, USER]) == "胸痛の原因はどれか。\n胸痛の原因はどれか。\n"


def test_names_that_templates_expect():
    assert chat("{{ messages[0] | tojson }}").render([{"role": "user", "content": "<b>痛"}]) == (
        '{"role": "user", "content": "<b>痛"}'
    )
    assert chat("{{ [1] | tojson(indent=2) }}").render([USER]) == "[\n  1\n]"
    assert (
        chat("{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}").render([USER]) == "TrueTrueFalse"
    )
    assert ChatTemplate("a{{ bos_token }}b", None, None).render([USER]) == "ab"
    assert chat("{% generation %}{{ messages[0].content }}{% endgeneration %}").render([USER]) == USER["content"]
    assert chat("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}").render([USER, USER]) == "user"


def test_date_of_a_template_can_be_held():
    now = datetime(2024, 7, 26, 9, 5)
    assert chat("{{ strftime_now('%d %b %Y') }}", now=now).render([USER]) == "26 Jul 2024"
    today = chat("{{ strftime_now('%Y') }}").render([USER])
    assert 0 <= int(today) - datetime.now().year + 1 <= 1


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10 ** 9) | length }}",
    ],
)
def test_sandbox_refuses(source):
    with pytest.raises(ValueError, match=r"^gemma\.jinja: \w+: .*expected a conversation that this template accepts"):
        chat(source, name="gemma.jinja").render([USER])


def test_refusals_name_the_template():
    with pytest.raises(
        ValueError, match=r"^chat template: TemplateError: Roles must alternate; got the roles \['user'\]"
    ):
        chat("{{ raise_exception('Roles must alternate') }}").render([USER])
    with pytest.raises(ValueError, match=r"^model/chat_template\.jinja, line 2: .*expected a Jinja template"):
        chat("a\n{% for m in %}", name="model/chat_template.jinja")
    with pytest.raises(ValueError, match="UndefinedError: 'dict object' has no attribute 'text'"):
        chat("{{ messages[0].text.strip() }}").render([USER])


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "got no messages"),
        ([{"role": "user"}], r"message 0 is \{'role': 'user'\}"),
        ([USER, {"role": "doctor", "content": "a"}], "message 1 is .*expected a role of system, user, assistant"),
        ([{"role": "user", "content": ["a"]}], "content of type str"),
        ([USER | {"name": "x"}], "nothing else"),
    ],
)
def test_malformed_messages(messages, fault):
    with pytest.raises(ValueError, match=fault):
        chat(CHATML).render(messages)
