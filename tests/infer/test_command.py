"""python -m medjax.infer from end to end: the text of the Generator, of an adapter, and how it ends."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_adapter import write_merged, write_run
from tiny_checkpoint import write_checkpoint

from medjax.infer.__main__ import main
from medjax.infer.conversations import asked, encode
from medjax.infer.generator import Generator
from medjax.infer.language_model import load_model

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["Which of these is right?", "正しい選択肢は?", "a", "What is pneumonia, and how is it treated?"]
FAST = ("--max-new-tokens", "20", "--no-engine.compilation_cache", "--engine.row_tokens", "256")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="module")
def base(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("train") / "ward", folder)


@pytest.fixture(scope="module")
def loaded():
    return {}


@pytest.fixture(autouse=True)
def compile_once(monkeypatch, loaded):
    """Calls take the same model object for the same model, which compiles its programs once."""
    import medjax.infer.run as command

    def load(name, *, progress, **options):
        key = (str(name), *sorted(options.items()))
        if key not in loaded:
            loaded[key] = load_model(name, progress=progress, **options)
        return loaded[key]

    monkeypatch.setattr(command, "load_model", load)


def _texts(model, prompts, new=20):
    ids = [encode(model, asked(prompt), "prompt", room=new) for prompt in prompts]
    found = Generator(model.programs, model.tokenizer, batch_size=4, row_tokens=256).generate(ids, max_new_tokens=new)
    return [generation.text for generation in found]


def _answers(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]


def test_one_prompt_prints_the_generators_text(folder, base, capsys):
    assert main([PROMPTS[0], "--model", str(folder), *FAST]) == 0
    printed = capsys.readouterr()
    (expected,) = _texts(base, PROMPTS[:1])
    assert printed.out == f"{expected}\n"
    assert printed.err.startswith(f"loading {folder}\n")
    assert "20 tokens in " in printed.err
    assert "the answer was cut off at 20 new tokens; --max-new-tokens gives more room" in printed.err


def test_many_prompts_keep_their_order(folder, base, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(PROMPTS), "utf-8")
    arguments = ["--file", str(file), "--model", str(folder), "--batch-size", "2", *FAST]
    expected = _texts(base, PROMPTS)
    assert main([*arguments, "--json"]) == 0
    found = _answers(capsys)
    assert [row["messages"] for row in found] == [asked(prompt) for prompt in PROMPTS]
    assert [row["text"] for row in found] == expected
    assert {row["finish"] for row in found} <= {"stop", "length"}
    assert all(0 <= row["tokens"] <= 20 for row in found)
    assert main(arguments) == 0
    assert capsys.readouterr().out == "".join(
        f"> {prompt}\n{text}\n\n" for prompt, text in zip(PROMPTS, expected, strict=True)
    )


def test_an_adapter_answers_as_the_merged_model_and_not_as_the_base(folder, base, run, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), "utf-8")
    assert main(["--file", str(file), "--json", "--model", str(folder), "--adapter", str(run), *FAST]) == 0
    found = [row["text"] for row in _answers(capsys)]
    assert found == _texts(load_model(write_merged(tmp_path / "merged", folder, run)), PROMPTS)
    assert not set(found) & set(_texts(base, PROMPTS))


def test_prompts_from_standard_input(folder, base, monkeypatch, capsys):
    system = {"role": "system", "content": "s"}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"messages": [system, *asked("a")]}) + "\n"))
    assert main(["--json", "--model", str(folder), "--system", "unused", *FAST]) == 0
    (row,) = _answers(capsys)
    assert row["messages"] == [system, *asked("a")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    assert main(["--file", "-", "--model", str(folder), *FAST]) == 0
    assert capsys.readouterr().out == f"{_texts(base, ['a'])[0]}\n"


def test_text_comes_as_it_is_made(base, capsys):
    """In pieces that are never taken back, although some end inside a character."""
    from medjax.infer.run import _Stream

    pieces: list[str] = []
    ids = encode(base, asked(PROMPTS[1]), "prompt", room=40)
    generator = Generator(base.programs, base.tokenizer, batch_size=4, row_tokens=256)
    (found,) = generator.generate([ids], max_new_tokens=40, on_text=lambda i, text: pieces.append(text))
    assert pieces[-1] == found.text
    assert len(pieces) == 6  # 1 + 8 k tokens, up to 41
    stream = _Stream()
    for piece in ["心", "心電\ufffd", "心電図\ufffd\ufffd", "心電図"]:
        stream.show(0, piece)
    assert capsys.readouterr().out == "心電図"
    stream.end("心電図\ufffd")  # it really ends there
    assert capsys.readouterr().out == "\ufffd\n"


def test_the_golden_story(shared_data, capsys):
    cases = json.loads((shared_data / "oracles" / "stories260k.json").read_text("utf-8"))["cases"]
    case = next(case for case in cases if len(case["prompt_token_ids"]) > 1)
    new = len(case["token_ids"]) - len(case["prompt_token_ids"])
    model = load_model("stories260k")
    prompt = model.tokenizer.decode(case["prompt_token_ids"])
    options = ("--model", "stories260k", "--max-new-tokens", str(new), "--json")
    assert main([prompt, *options]) == 0
    (row,) = _answers(capsys)
    assert model.tokenizer.decode(case["token_ids"]).strip() == (prompt + row["text"]).strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--file", "y"], "--prompt: got a prompt and a file of prompts, expected one of them; drop the other."),
        (["--prompt", " "], "--prompt: got an empty prompt, expected text; write what the model shall answer."),
        (["x", "--max-new-tokens", "0"], "--max-new-tokens: got 0, expected 1 or more."),
        (["x", "--temperature", "1"], "unknown option --temperature;"),
    ],
)
def test_calls_that_are_refused_at_once(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_work_that_cannot_be_done(folder, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        assert main([*arguments, *FAST]) == 2
        return capsys.readouterr().err

    assert refused("--file", str(tmp_path / "x")).startswith(f"medjax.infer: {tmp_path / 'x'}: No such file")
    (tmp_path / "empty.txt").write_text("\n")
    assert "empty.txt: got no prompt, expected one a line" in refused("--file", str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"a\xe9")
    assert "latin.txt: byte 1 is not UTF-8" in refused("--file", str(tmp_path / "latin.txt"))
    long = refused("word " * 1000, "--model", str(folder))
    assert "prompt: got " in long
    assert "expected at most the model's context of 1024; shorten it" in long
    other = write_run(tmp_path / "other", "another-base", base_digest="7" * 64)
    assert "expected another-base with digest 777777777777" in refused(
        "x", "--model", str(folder), "--adapter", str(other)
    )
    # before the model is looked for
    assert "expected an adapter folder" in refused("x", "--model", "nowhere", "--adapter", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input: got no prompt" in refused("--model", str(folder))


def test_how_it_ends(monkeypatch, capsys):
    import medjax.infer.run as run

    for error, status, message in (
        (KeyboardInterrupt(), 75, "medjax.infer: stopped.\n"),
        (OSError(28, "No space left on device"), 1, "medjax.infer: [Errno 28] No space left on device\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: of memory\nmore"),
            1,
            "medjax.infer: RESOURCE_EXHAUSTED: of memory: got a run",
        ),
    ):

        def fail(settings, error=error):
            raise error

        monkeypatch.setattr(run, "print_answers", fail)
        assert main(["x"]) == status
        assert capsys.readouterr().err.startswith(message)


def test_help_does_not_wait_for_jax():
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "medjax.infer", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 5  # 0.1 s on a quiet machine
    assert "Decoding is greedy" in done.stdout
    assert "--adapter" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.endswith((" jax", " numpy", " flax"))]


def test_a_reader_that_leaves_is_no_traceback():
    code = """
import sys
from medjax.infer.command import exit_status
from medjax.infer.settings import EngineSettings
def work():
    print("one")
    raise BrokenPipeError(32, "Broken pipe")
sys.exit(exit_status("medjax.infer", work, EngineSettings(), stopped=""))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_kinds_of_quantisation_are_those_there_are():
    from dataclasses import fields

    from medjax.infer.settings import ModelSettings
    from medjax.nn.quant import KINDS

    (key,) = (key for key in fields(ModelSettings) if key.name == "quantisation")
    assert key.metadata["choices"] == KINDS
