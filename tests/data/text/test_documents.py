"""Token documents: the tokens that generation would meet, what counts, and the account of what was cut."""

import numpy as np
import pytest

from medjax.data.text.chat import ChatTemplate
from medjax.data.text.documents import Cut, DocumentList, Report, encode, tokenise
from medjax.data.text.records import Conversation, Message, Pair, Passage
from medjax.data.text.templates import Rendered, Segment, Template, load_template
from medjax.data.text.tokenizer import load_tokenizer
from medjax.data.text.vocabulary import tokenizer_from_gguf

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
TALK = Conversation(
    "c",
    "w",
    (
        Message("user", "胸痛はあるか"),
        Message("assistant", "胸痛がある。"),
        Message("user", "脈は?"),
        Message("assistant", "速い"),
    ),
)


@pytest.fixture(params=["byte_level_folder", "llama_style_folder", "sentencepiece_folder"])
def tokenizer(request):
    return load_tokenizer(request.getfixturevalue(request.param))


def shown(rendered, tokenizer, **options):
    """Tokens, and the text of each run of counted ones."""
    tokens, counted = encode(rendered, tokenizer, **options)
    runs = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(counted)) + 1)
    texts = [tokenizer.decode([int(t) for t in tokens[run]], skip_special=False) for run in runs if counted[run[0]]]
    return tokens.tolist(), texts


def test_prompt_tokens_are_those_of_generation(tokenizer):
    for prompt, response in (
        ("### 返答:\n", "心電図"),
        ("診断: ", "心房細動"),
        ("最近の胸", "痛"),
        ("a\n", "\n\nb"),
        ("", "胸痛"),
        ("order an", " ECG first."),
    ):
        tokens, _ = encode(Rendered((Segment(prompt, False), Segment(response, True)), False, True), tokenizer)
        alone = tokenizer.encode(prompt)
        assert tokens[: len(alone)].tolist() == alone
        assert tokens[-1] == tokenizer.eos_ids[0]
        assert tokenizer.decode(tokens.tolist()) == prompt + response
        assert tokens.dtype == np.int32


@pytest.mark.parametrize("folder", ["byte_level_folder", "sentencepiece_folder"])
def test_usual_spelling_is_kept_where_nothing_merges(request, folder):
    tokenizer = load_tokenizer(request.getfixturevalue(folder))
    prompt, response = "The patient has", " chest pain and an irregular pulse"
    tokens, counted = encode(Rendered((Segment(prompt, False), Segment(response, True)), False, False), tokenizer)
    assert tokens.tolist() == tokenizer.encode(prompt + response)
    assert counted.tolist() == [i >= len(tokenizer.encode(prompt)) for i in range(len(tokens))]


def test_chat_tokens_are_those_of_the_whole_text(byte_level_folder, sentencepiece_folder):
    for folder, source, ends in ((byte_level_folder, CHATML, "<|im_end|>"), (sentencepiece_folder, LLAMA, "</s>")):
        tokenizer = load_tokenizer(folder)
        tokenizer.chat_template = source
        rendered = load_template("chat", tokenizer).render(TALK)
        whole = "".join(segment.text for segment in rendered.segments)
        tokens, texts = shown(rendered, tokenizer)
        assert tokens == tokenizer.encode(whole, bos=False, special=True)
        assert [text.replace(" ", "") for text in texts] == [f"胸痛がある。{ends}", f"速い{ends}"]
        assert tokens.count(tokenizer.bos_id) == (1 if ends == "</s>" else 0)
        everything, counted = encode(rendered, tokenizer, counted="all")
        assert everything.tolist() == tokens
        assert counted.tolist() == [False] + [True] * (len(tokens) - 1)


@pytest.mark.parametrize(
    "source", [CHATML, LLAMA, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"]
)
def test_chat_of_many_turns_is_encoded_as_the_whole_text_is(tokenizer, source):
    tokenizer.chat_template = source
    turns = [Message(role, f"{role} 胸痛 {i} のa") for i in range(12) for role in ("user", "assistant")]
    rendered = load_template("chat", tokenizer).render(Conversation("c", "w", tuple(turns)))
    tokens, counted = encode(rendered, tokenizer)
    text, expected, marks = "", [], []
    for segment in rendered.segments:
        text += segment.text
        together = tokenizer.encode(text, bos=False, special=True)
        assert together[: len(expected)] == expected, "nothing here merges across segments"
        marks += [segment.counted] * (len(together) - len(expected))
        expected = together
    assert tokens.tolist() == expected
    assert counted.tolist() == [False, *marks[1:]]
    assert len(expected) > 24 * 2


def test_smollm2_learns_what_it_would_have_to_say(smollm2_metadata):
    tokenizer = tokenizer_from_gguf(smollm2_metadata)
    template = load_template("chat", tokenizer)
    tokens, texts = shown(template.render(TALK), tokenizer)
    assert texts == ["胸痛がある。<|im_end|>", "速い<|im_end|>"]
    chat = ChatTemplate(tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
    asked = [{"role": m.role, "content": m.content} for m in TALK.messages]
    for turns in (1, 3):  # what generation starts from
        prompt = tokenizer.encode(chat.render(asked[:turns]), bos=False, special=True)
        assert tokens[: len(prompt)] == prompt


def test_plain_text_counts_all_but_its_first_token(tokenizer):
    rendered = Template("plain").render(Passage("t", "w", "胸痛の患者"))
    tokens, counted = encode(rendered, tokenizer)
    assert tokens.tolist() == [*tokenizer.encode("胸痛の患者"), tokenizer.eos_ids[0]]
    assert (tokens[0] == tokenizer.bos_id) == tokenizer.add_bos
    assert counted.tolist() == [False] + [True] * (len(tokens) - 1)


def test_no_eos_where_the_tokenizer_has_none(gguf_sentencepiece):
    tokenizer = tokenizer_from_gguf(gguf_sentencepiece)
    tokenizer.eos_ids = ()
    tokens, _ = encode(Template("plain").render(Passage("t", "w", "胸痛")), tokenizer)
    assert tokens.tolist() == tokenizer.encode("胸痛")


class Letters:
    """A stand-in for a tokenizer: a token for each character, no BOS, EOS 0."""

    eos_ids = (0,)

    def encode(self, text, *, bos=None, special=False):
        return [ord(character) for character in text]


def made(records, template="plain", **cut):
    report = Report(cut["window"])
    documents = list(tokenise(records, Template(template), Letters(), Cut(**cut), report))
    return [("".join(map(chr, d.tokens)), d.counted.astype(int).tolist(), d.id) for d in documents], report


def test_long_records_are_cut_as_asked():
    pair = Pair("p", "w", "abc", "", "def")
    assert made([pair], window=7)[0] == [("abcdef\0", [0, 0, 0, 1, 1, 1, 1], "p")]
    assert made([pair], window=5)[0] == [("abcde", [0, 0, 0, 1, 1], "p")]
    assert made([pair], window=3)[0] == []
    assert made([pair], window=5, long="drop")[0] == []
    assert made([pair], window=4, long="split", counted="all")[0] == [
        ("abcd", [0, 1, 1, 1], "p piece 1"),
        ("def\0", [0, 1, 1, 1], "p piece 2"),
    ]
    # a piece of the prompt alone teaches nothing
    assert made([pair], window=3, long="split")[0] == [
        ("cde", [0, 1, 1], "p piece 2"),
        ("ef\0", [0, 1, 1], "p piece 3"),
    ]
    passage = Passage("t", "w", "abcdefg")
    assert made([passage], window=4)[0] == [
        ("abcd", [0, 1, 1, 1], "t piece 1"),
        ("defg", [0, 1, 1, 1], "t piece 2"),
        ("g\0", [0, 1], "t piece 3"),
    ]
    assert made([passage], window=4, long_text="truncate")[0] == [("abcd", [0, 1, 1, 1], "t")]


@pytest.mark.parametrize("window", [2, 3, 5, 8, 64])
def test_pieces_predict_every_token_once(window):
    texts = ["abcdefghijklmnopqrstuvwxyz"[:length] for length in range(1, 27)]
    for text in texts:
        documents, report = made([Passage("t", "w", text)], window=window)
        predicted = "".join(c for piece, counted, _ in documents for c, n in zip(piece, counted, strict=True) if n)
        assert predicted == text[1:] + "\0"
        assert report.counted == len(text)
        assert max(len(piece) for piece, _, _ in documents) <= window


def test_report_counts_and_names():
    records = [
        *(Pair(f"long{i}", "w", "a", "", "b" * 1000) for i in range(4)),
        Pair("fits", "w", "a", "", "b"),
        Pair("cut", "w", "a" * 30, "", "b"),
        Passage("novel", "w", "c" * 25),
        Conversation("silent", "w", (Message("user", "a"), Message("assistant", "b"))),
    ]
    _, report = made(records, window=10)
    # 4 x 10; 3; (10 + 10 + 8) of the novel; 3
    assert (report.records, report.documents, report.tokens, report.counted) == (8, 9, 74, 36 + 2 + 25 + 2)
    assert str(report) == (
        "9 documents, 74 tokens (65 counted); 4 truncated to 10, 3,968 tokens lost (long0, long1, long2, …); "
        "1 split (novel); 1 dropped: no response left (cut); longest 1,002"
    )
    _, report = made(records[:1], window=10, long="drop")
    assert str(report) == "0 documents, 0 tokens (0 counted); 1 dropped: longer than 10 (long0); longest 1,002"


def test_conversation_without_an_answer_is_dropped(byte_level_folder):
    tokenizer = load_tokenizer(byte_level_folder)
    report = Report(64)
    silent = Conversation("s", "w", (Message("user", "胸痛"),))
    assert list(tokenise([silent], load_template("chat", tokenizer), tokenizer, Cut(64), report)) == []
    assert str(report).endswith("1 dropped: no response (s); longest " + str(report.longest))


def test_lists_know_their_lengths():
    report = Report(8)
    records = [Pair("a", "w", "ab", "", "c"), Passage("b", "w", "abcdef")]
    documents = DocumentList(tokenise(records, Template("plain"), Letters(), Cut(8), report))
    assert (documents.lengths.tolist(), documents.counts.tolist(), len(documents)) == ([4, 7], [2, 6], 2)
    assert documents[1].id == "b"


def test_options_are_checked():
    with pytest.raises(ValueError, match="window: got 1, expected at least 2 tokens"):
        Cut(1)
    with pytest.raises(ValueError, match="long_text: got 'cut', expected one of truncate, split, drop"):
        Cut(8, long_text="cut")
    with pytest.raises(ValueError, match="counted: got 'prompts', expected one of responses, all"):
        Cut(8, counted="prompts")
