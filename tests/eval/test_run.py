"""Runs from one end to the other: numbers, killed and resumed runs, devices, errors and exit statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_checkpoint

from medjax.eval.__main__ import main
from medjax.eval.run import evaluate
from medjax.eval.settings import EvalSettings
from medjax.store.runs import Journal

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ("--engine.row_tokens", "256", "--batch-size", "8", "--no-engine.compilation_cache")
PROTOCOLS = ("--protocol", "choice-logprob,strict", "--chat-template", "none", "--max-new-tokens", "8")
FILES = ["journal", "report.html", "results.json", "run.json", "samples.jsonl"]

pytestmark = pytest.mark.usefixtures("compile_once")


def _arguments(model, exam, out, *more):
    return ["--model", str(model), "--tasks", f"{exam}:en", "--out", str(out), *ENGINE, *PROTOCOLS, *more]


def _results(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def _samples(folder, ending=""):
    lines = (folder / "samples.jsonl").read_text("utf-8").split("\n")[:-1]
    return [sample for sample in map(json.loads, lines) if sample["task"].endswith(ending)]


def _logprobs(samples):
    return np.asarray([float(pair[0]) for sample in samples for pair in sample["filtered_resps"]])


@pytest.fixture
def calls(monkeypatch):
    """How often each program ran."""
    from medjax.infer.programs import Programs

    count = Counter()

    def counted(name):
        program = getattr(Programs, name)

        def call(*args):
            count[name] += 1
            return program(*args)

        return call

    for name in ("prefix", "score", "prefill", "decode"):
        monkeypatch.setattr(Programs, name, counted(name))
    return count


@pytest.fixture
def whole(tiny_folder, exam, tmp_path, calls, capsys):
    """An uninterrupted run: its folder, how often it ran each program, what it printed."""
    out = tmp_path / "whole"
    assert main(_arguments(tiny_folder, exam, out)) == 0
    counted = Counter(calls)
    calls.clear()
    return out, counted, capsys.readouterr().out


def _assert_same(first, second):
    assert _results(first)["results"] == _results(second)["results"]
    assert (first / "samples.jsonl").read_bytes() == (second / "samples.jsonl").read_bytes()


# numbers


def test_a_run_writes_its_folder_and_its_numbers_agree(whole, exam_rows, loaded_models, tiny_folder):
    out, counted, printed = whole
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert counted["score"] >= 5
    assert counted["prefill"] >= 3
    results = _results(out)
    scored, generated = _samples(out, "choice-logprob-0shot"), _samples(out, "strict-8tokens-0shot")
    assert [s["doc"]["id"] for s in scored] == [s["doc"]["id"] for s in generated] == [row["id"] for row in exam_rows]
    right = []
    for sample, row in zip(scored, exam_rows, strict=True):
        values = [float(logprob) for logprob, _ in sample["filtered_resps"]]
        best = sorted(sorted(range(len(values)), key=lambda i: -values[i])[: len(row["answer"])])
        assert sample["picked"] == (["abcde"[i] for i in best] if values else None)
        right.append(sample["picked"] == row["answer"])
    entry = results["results"]["ward_en_choice-logprob-0shot"]
    assert entry["acc,none"] == sum(right) / 24
    record = results["medjax"]["evaluations"][0]
    assert record["scores"]["points"] == sum(row["points"] for row, ok in zip(exam_rows, right, strict=True) if ok)
    assert record["scores"]["points_total"] == sum(row["points"] for row in exam_rows)
    prohibited = sum(bool({*(s["picked"] or ())} & {*s["doc"].get("prohibited", ())}) for s in scored)
    assert (record["scores"]["prohibited"], record["scores"]["unparsed"]) == (prohibited, 1)
    assert record["scores"]["by_exam"]["ward"]["verdict"]["result"] == "none"
    assert f"results  {out}/results.json" in printed
    # three requests against one at a time, nothing shared, dense attention
    from medjax.infer.packing import Request
    from medjax.infer.programs import Programs
    from medjax.infer.scorer import Scorer

    model = next(m for key, m in loaded_models.items() if key[0] == str(tiny_folder) and ("mesh", "") in key)
    plain = Scorer(Programs(model.decoder, dtype="float32", backend="reference"), row_tokens=256)
    for sample, choice in ((scored[0], 4), (scored[2], 0), (scored[23], 1)):
        arguments = sample["arguments"][f"gen_args_{choice}"]
        context, continuation = model.tokenizer.encode_pair(arguments["arg_0"], arguments["arg_1"])
        (score,) = plain.score([Request(tuple(context), tuple(continuation))])
        assert float(sample["filtered_resps"][choice][0]) == pytest.approx(score.logprob, abs=1e-4)


def test_the_record_says_what_was_run(whole, exam, tiny_folder):
    out, _, _ = whole
    results = _results(out)
    record = results["medjax"]
    assert record["command"] == (
        f"python -m medjax.eval --model.name {tiny_folder} --model.chat_template none --task.names {exam}:en "
        "--protocol.names choice-logprob,strict --protocol.max_new_tokens 8 --engine.row_tokens 256 "
        f"--engine.batch_size 8 --engine.compilation_cache false --out {out}"
    )
    assert record["devices"] == "1 x cpu"
    assert len(record["model"]["digest"]) == len(record["model"]["tokenizer_digest"]) == 64
    scoring, generation = (evaluation["work"] for evaluation in record["evaluations"])
    # five choices share their question
    assert scoring["tokens_requested"] > 1.5 * scoring["tokens_computed"]
    for work in (scoring, generation):
        assert work["tokens_saved"] == work["tokens_requested"] - work["tokens_computed"]
        assert work["items_reused"] == 0
    assert results["chat_template"] is None
    assert results["max_length"] == 1024


def test_a_chat_template_is_used_and_recorded(tiny_folder, exam, tmp_path):
    results = evaluate(
        model=tiny_folder, tasks=f"{exam}:en", protocol="choice-logprob", num_fewshot=1, limit=2, out=tmp_path / "chat",
        **{"engine.row_tokens": 256},
    )  # fmt: skip
    first, second = _samples(tmp_path / "chat")
    text = first["arguments"]["gen_args_0"]["arg_0"]
    assert text.startswith(
        "<|im_start|>system\nYou answer medical examination questions.<|im_end|>\n<|im_start|>user\n"
    )
    assert text.endswith("\nAnswer:<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_start|>assistant\n") == 2
    assert [a["arg_1"] for a in second["arguments"].values()] == second["doc"]["choices"]
    assert results["chat_template"].startswith("{% for m in messages %}")
    assert results["n-shot"] == {"ward_en_choice-logprob-1shot": 1}


def test_eight_devices_give_the_scores_of_one(whole, tiny_folder, exam, tmp_path):
    import jax

    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, there are {len(jax.devices())}")
    out = tmp_path / "mesh"
    assert main(_arguments(tiny_folder, exam, out, "--mesh", "data=4,tensor=2", "--protocol", "choice-logprob")) == 0
    assert _results(out)["medjax"]["mesh"] == {"data": 4, "tensor": 2}
    one, eight = _samples(whole[0], "choice-logprob-0shot"), _samples(out)
    assert [s["doc_hash"] for s in one] == [s["doc_hash"] for s in eight]
    np.testing.assert_allclose(_logprobs(eight), _logprobs(one), atol=1e-4)


# killed, finished and changed runs


@pytest.mark.parametrize("appends", [1, 20, "all scores and one"])
def test_an_interrupted_run_goes_on_without_repeating_work(
    whole, tiny_folder, exam, tmp_path, monkeypatch, calls, capsys, appends
):
    path, counted, _ = whole
    assert counted["score"] > 20
    if isinstance(appends, str):
        appends = counted["score"] + 1
    out, written = tmp_path / "killed", []
    append = Journal.append

    def interrupted(journal, entries):
        if len(written) == appends:
            raise KeyboardInterrupt
        written.append(len(entries))
        append(journal, entries)

    monkeypatch.setattr(Journal, "append", interrupted)
    assert main(_arguments(tiny_folder, exam, out)) == 75
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert not (out / "results.json").exists()
    monkeypatch.setattr(Journal, "append", append)
    kept = sum(len(file.read_text("utf-8").split("\n")) - 1 for file in (out / "journal").iterdir())
    assert kept == sum(written)
    calls.clear()
    assert main(_arguments(tiny_folder, exam, out)) == 0
    assert "holds this run already; going on from there" in capsys.readouterr().out
    scored = min(appends, counted["score"])  # one journal entry a batch of rows, one a batch of generations
    assert calls["score"] == counted["score"] - scored
    assert (calls["prefill"] < counted["prefill"]) == (appends > counted["score"])
    assert _results(out)["medjax"]["resumed"] is True
    _assert_same(out, path)


def test_a_finished_run_computes_nothing_again(whole, tiny_folder, exam, calls):
    out, _, _ = whole
    before = _results(out)["results"], (out / "samples.jsonl").read_bytes()
    assert main(_arguments(tiny_folder, exam, out)) == 0
    assert not calls
    results = _results(out)
    assert (results["results"], (out / "samples.jsonl").read_bytes()) == before
    assert [e["work"]["items_reused"] for e in results["medjax"]["evaluations"]] == [24, 24]
    assert [e["work"]["items_per_second"] for e in results["medjax"]["evaluations"]] == [0, 0]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_a_killed_process_goes_on(whole, tiny_folder, exam, tmp_path, sent, status):
    """Killed after the first finished batch; the same command then ends as if nothing had happened."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "medjax.eval", *_arguments(tiny_folder, exam, out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    journal, limit = out / "journal" / "ward_en_choice-logprob-0shot.jsonl", time.time() + 120
    while not (journal.is_file() and journal.stat().st_size):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < limit
        time.sleep(0.001)
    os.kill(process.pid, sent)
    assert process.wait(60) == status
    assert not (out / "results.json").exists()
    assert main(_arguments(tiny_folder, exam, out)) == 0
    assert _results(out)["medjax"]["resumed"] is True
    _assert_same(out, whole[0])


def test_changed_data_prompt_or_model_starts_anew_and_says_why(tiny_folder, exam, tmp_path, capsys, calls):
    out = tmp_path / "run"

    def note(model, *more):
        calls.clear()
        assert main(_arguments(model, exam, out, "--protocol", "choice-logprob", "--limit", "4", *more)) == 0
        assert calls["score"] > 0
        lines = capsys.readouterr().out.splitlines()
        return next((line for line in lines if "held another run" in line), None)

    key = r"evaluations.ward_en_choice-logprob-0shot"
    assert note(tiny_folder) is None
    exam.write_text(exam.read_text("utf-8").replace('"points": 3', '"points": 2', 1), "utf-8")
    assert f"held another run ({key}.data: " in (found := note(tiny_folder))
    assert found.endswith(f"it was moved to {out}.old1, this one starts anew")
    assert f"({key}: absent -> " not in found
    exam.write_text(exam.read_text("utf-8").replace("fever", "chills"), "utf-8")
    found = note(tiny_folder)
    assert f"{key}.data: " in found
    assert f"{key}.prompts: " in found
    other = write_checkpoint(tmp_path / "other", seed=4)
    assert "held another run (model: " in note(other)
    assert "(seed: 0 -> 1)" in note(other, "--seed", "1")
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run", *(f"run.old{n}" for n in range(1, 5))]


# the command


def test_a_toml_file_gives_the_options_and_the_command_line_wins(tiny_folder, exam, tmp_path):
    config = tmp_path / "exam.toml"
    config.write_text(
        f'out = "{tmp_path / "toml"}"\nseed = 5\n[model]\nname = "{tiny_folder}"\nchat_template = "none"\n'
        f'[task]\nnames = ["{exam}:en"]\nlimit = 9\n[protocol]\nnames = ["choice-logprob"]\n'
        "[engine]\nrow_tokens = 256\ncompilation_cache = false\n"
    )
    assert main([str(config), "--limit", "2", "--protocol.continuation=letter"]) == 0
    results = _results(tmp_path / "toml")
    assert (results["config"]["limit"], results["config"]["random_seed"]) == (2, 5)
    assert list(results["results"]) == ["ward_en_choice-logprob-letter-0shot"]
    assert len(_samples(tmp_path / "toml")) == 2


def test_help_lists_every_key(capsys):
    from medjax.config import to_dict

    def keys(tree, at=""):
        for name, value in tree.items():
            yield from keys(value, f"{at}{name}.") if isinstance(value, dict) else [f"{at}{name}"]

    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    every = list(keys(to_dict(EvalSettings())))
    assert len(every) > 20
    for key in every:
        assert text.count(f"\n  --{key}, --") + text.count(f"\n  --{key}  (") == 1, key
    assert "--out, --out" not in text
    assert text.rstrip().endswith("75 stopped by Ctrl-C or SIGTERM: the same command goes on.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "question": "?", "choices": ["1", "2"], "answer": ["c"]}', "item x: answer: got ('c',)"),
        ('{"id": "x", "question": "?", "choices": ["1", "2"], "anwser": ["a"]}', "anwser: unknown field; did you mean"),
        ('{"id": "x", "question": "?", "choices": ["1", "2"]}', "answer: missing"),
        ('{"id": "x", ', "not JSON"),
    ],
)
def test_a_malformed_exam_line_is_named(exam, tmp_path, capsys, line, message):
    with exam.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert main(_arguments("stories260k", exam, tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith(f"medjax.eval: {exam}, line 25: {message}")
    assert not (tmp_path / "out").exists()


def test_exit_status_2_names_what_is_wrong(tiny_folder, exam, tmp_path, capsys):
    def error(*more, status=2):
        out = tmp_path / "out"
        assert main(_arguments(tiny_folder, exam, out, *more)) == status
        assert not out.exists()
        return capsys.readouterr().err.removeprefix("medjax.eval: ")

    assert error("--tasks", "igakuka").startswith("task: got 'igakuka'; did you mean igakuqa?")
    assert error("--tasks", f"{exam},{exam}").startswith("task and protocol: got ward_ja_choice-logprob-0shot 2 times")
    assert error("--model", str(tmp_path / "none")).startswith(f"model: got '{tmp_path / 'none'}', which is no file")
    assert error("--num-fewshot", "24").startswith("task ward: got num_fewshot=24, its pool holds 23 demonstrations")
    assert error("--template", str(tmp_path / "t.txt")).startswith(f"{tmp_path / 't.txt'}: No such file")
    long = json.dumps({"id": "long", "question": "心" * 900, "choices": ["x", "y"], "answer": ["a"]})
    exam.write_text(exam.read_text("utf-8") + long + "\n", "utf-8")
    message = error("--protocol", "strict")
    assert message.startswith("ward_en_strict-8tokens-0shot: item long: got 2")
    assert "tokens and 8 of an answer, expected at most the model's context of 1024" in message
    assert error().startswith("ward_en_choice-logprob-0shot: item long: got ")
    exam.write_text(json.dumps({"id": "q", "question": "?", "choices": ["x", "y"], "answer": ["a"]}), "utf-8")
    assert error("--protocol", "gestalt").startswith("task ward: got 1 items, of which protocol gestalt asks none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limmit", "3"], "unknown option --limmit; did you mean --limit?"),
        (["--protocol", "kasia"], '--protocol: got "kasia", expected list of one of strict, choice-logprob, kasai'),
        (["--limit", "0"], "--limit: got 0, expected 1 or more items."),
        (["--resamples", "0"], "--resamples: got 0, expected 1 or more."),
        (["--engine.row_tokens", "200"], "--engine.row_tokens: got 200, expected a multiple of 128."),
        (["none.toml"], "none.toml: No such file or directory"),
    ],
)
def test_a_wrong_call_exits_before_anything_is_loaded(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_folder_with_other_files_is_left_alone(tiny_folder, exam, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(_arguments(tiny_folder, exam, tmp_path / "mine")) == 2
    assert "got a folder with other files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_full_disk_is_exit_status_1(tiny_folder, exam, tmp_path, monkeypatch, capsys):
    def full(journal, entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    assert main(_arguments(tiny_folder, exam, tmp_path / "out", "--limit", "2")) == 1
    assert capsys.readouterr().err == "medjax.eval: [Errno 28] No space left on device\n"


def test_options_beside_settings_are_refused():
    with pytest.raises(ValueError, match="got settings and limit, expected one or the other"):
        evaluate(EvalSettings(), limit=3)


# real models and questions


def test_stories260k_grades_an_exam(shared_data, exam_rows, tmp_path):
    path = tmp_path / "short.jsonl"
    rows = [row | {"question": "What?", "context": "", "choices": ["a dog", "the sun"], "answer": ["b"],
                   "prohibited": []} for row in exam_rows[:3]]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(
        model="stories260k", tasks=f"{path}:en", protocol="choice-logprob", out=tmp_path / "out",
        **{"engine.row_tokens": 256},
    )  # fmt: skip
    assert results["max_length"] == 512
    assert results["results"]["short_en_choice-logprob-0shot"]["sample_len"] == 3
    logprobs = _logprobs(_samples(tmp_path / "out")).reshape(3, 2)
    assert np.isfinite(logprobs).all()
    np.testing.assert_allclose(logprobs, logprobs[:1].repeat(3, 0), atol=1e-5)  # the same question three times


def test_smollm2_answers_real_questions(shared_data, smollm2_gguf, tmp_path):
    """Three IgakuQA questions after the authors' three demonstrations, by generation and by log-probability."""
    results = evaluate(
        model=str(smollm2_gguf), tasks="igakuqa", years="2022", sections="A", text_only=True, limit=3,
        protocol="kasai,choice-logprob", num_fewshot=3, data_dir=str(shared_data), out=tmp_path / "out",
        batch_size=4, max_new_tokens=8, **{"engine.row_tokens": 1024},
    )  # fmt: skip
    samples = _samples(tmp_path / "out")
    assert [s["task"] for s in samples] == ["igakuqa_ja_kasai-8tokens-3shot"] * 3 + [
        "igakuqa_ja_choice-logprob-3shot"
    ] * 3
    logprobs = _logprobs(samples[3:])
    assert logprobs.shape == (15,)
    assert np.isfinite(logprobs).all()
    assert (logprobs < 0).all()
    for evaluation in results["medjax"]["evaluations"]:
        verdict = evaluation["scores"]["by_exam"]["2022"]["verdict"]
        assert verdict["result"] == "incomplete"
        assert verdict["reasons"] == ["3 of the 400 questions were asked; the cut-offs are for all of them"]
        assert evaluation["scores"]["items"] == 3
    assert all(s["arguments"]["gen_args_0"]["arg_0"].count("<|im_start|>assistant\n") == 4 for s in samples)
