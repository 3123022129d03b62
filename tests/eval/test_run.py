"""Runs from one end to the other: numbers, killed and resumed runs, devices, real models."""

import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from small_runs import arguments, results_of, samples_of
from tiny_checkpoint import write_checkpoint

from medjax.data.text.tokenizer import load_tokenizer
from medjax.eval.__main__ import main
from medjax.eval.run import evaluate
from medjax.eval.settings import EvalSettings
from medjax.store.runs import Journal

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    *("config.toml", "figure.svg", "journal", "lock", "report.html", "results.json", "run.json", "samples.jsonl"),
]

pytestmark = pytest.mark.usefixtures("compile_once")


def _logprobs(samples):
    return np.asarray([float(pair[0]) for sample in samples for pair in sample["filtered_resps"]])


@pytest.fixture
def calls(monkeypatch):
    """How often each program ran."""
    from medjax.infer.decoding import Decoding
    from medjax.infer.programs import Programs

    count = Counter()

    def counted(owner, name):
        program = getattr(owner, name)

        def call(*args):
            count[name] += 1
            return program(*args)

        return call

    for owner, names in ((Programs, ("prefix", "score")), (Decoding, ("prefill", "decode"))):
        for name in names:
            monkeypatch.setattr(owner, name, counted(owner, name))
    return count


@pytest.fixture
def whole(tiny_folder, exam, tmp_path, calls, capsys):
    """An uninterrupted run: its folder, how often it ran each program, what it printed."""
    out = tmp_path / "whole"
    assert main(arguments(tiny_folder, exam, out)) == 0
    counted = Counter(calls)
    calls.clear()
    return out, counted, capsys.readouterr().out


def _assert_same(first, second):
    assert results_of(first)["results"] == results_of(second)["results"]
    assert (first / "samples.jsonl").read_bytes() == (second / "samples.jsonl").read_bytes()


# numbers


def test_a_run_writes_its_folder_and_its_numbers_agree(whole, exam_rows, loaded_models, tiny_folder):
    out, counted, printed = whole
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert counted["score"] >= 5
    assert counted["prefill"] >= 3
    results = results_of(out)
    scored, generated = samples_of(out, "choice-logprob-0shot"), samples_of(out, "strict-8tokens-0shot")
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
    assert (record["scores"]["prohibited"], record["scores"]["unparsed"]) == (prohibited, 0)
    assert record["scores"]["not_asked"] == 1
    assert [s["doc"]["id"] for s in scored if not s["asked"]] == ["q11"]
    assert "ward_en_choice-logprob-0shot: 1 item that asks for a number was not asked" in printed
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
    results = results_of(out)
    record = results["medjax"]
    assert record["command"] == (
        f"python -m medjax.eval --model {tiny_folder} --chat-template none --tasks {exam}:en "
        "--protocol choice-logprob,strict --max-new-tokens 8 --row-tokens 256 "
        f"--batch-size 8 --engine.compilation_cache false --out {out}"
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
    first, second = samples_of(tmp_path / "chat")
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
    assert main(arguments(tiny_folder, exam, out, "--mesh", "data=4,tensor=2", "--protocol", "choice-logprob")) == 0
    assert results_of(out)["medjax"]["mesh"] == {"data": 4, "tensor": 2}
    one, eight = samples_of(whole[0], "choice-logprob-0shot"), samples_of(out)
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
    assert main(arguments(tiny_folder, exam, out)) == 75
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert not (out / "results.json").exists()
    monkeypatch.setattr(Journal, "append", append)
    kept = sum(len(file.read_text("utf-8").split("\n")) - 2 for file in (out / "journal").iterdir())
    assert kept == sum(written)
    calls.clear()
    assert main(arguments(tiny_folder, exam, out)) == 0
    assert "holds this run already; going on from there" in capsys.readouterr().out
    scored = min(appends, counted["score"])  # one journal entry a batch of rows, one a batch of generations
    assert calls["score"] == counted["score"] - scored
    assert (calls["prefill"] < counted["prefill"]) == (appends > counted["score"])
    assert results_of(out)["medjax"]["resumed"] is True
    _assert_same(out, path)


def test_a_finished_run_computes_nothing_again(whole, tiny_folder, exam, calls):
    out, _, _ = whole
    before = results_of(out)["results"], (out / "samples.jsonl").read_bytes()
    assert main(arguments(tiny_folder, exam, out)) == 0
    assert not calls
    results = results_of(out)
    assert (results["results"], (out / "samples.jsonl").read_bytes()) == before
    assert [e["work"]["items_reused"] for e in results["medjax"]["evaluations"]] == [24, 24]
    assert [e["work"]["items_per_second"] for e in results["medjax"]["evaluations"]] == [0, 0]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_a_killed_process_goes_on(whole, tiny_folder, exam, tmp_path, sent, status):
    """Killed after the first finished batch; the same command then ends as if nothing had happened."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "medjax.eval", *arguments(tiny_folder, exam, out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    journal, limit = out / "journal" / "ward_en_choice-logprob-0shot.jsonl", time.time() + 120
    while not (journal.is_file() and journal.stat().st_size):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < limit
        time.sleep(0.001)
    os.kill(process.pid, sent)
    assert process.wait(60) == status
    assert not (out / "results.json").exists()
    assert main(arguments(tiny_folder, exam, out)) == 0
    assert results_of(out)["medjax"]["resumed"] is True
    _assert_same(out, whole[0])


def test_the_settings_in_the_folder_repeat_the_run(whole, calls):
    out, _, _ = whole
    before = results_of(out)["results"], (out / "samples.jsonl").read_bytes(), (out / "config.toml").read_bytes()
    assert main([str(out / "config.toml")]) == 0
    assert not calls
    assert results_of(out)["medjax"]["resumed"] is True
    main([str(out / "config.toml"), "--out", str(out.with_name("again"))])
    assert calls["score"] > 20
    again = out.with_name("again")
    assert (results_of(again)["results"], (again / "samples.jsonl").read_bytes()) == before[:2]
    written = before[2].decode("utf-8")
    assert (again / "config.toml").read_text("utf-8") == written.replace(f'"{out}"', f'"{again}"')


def test_the_identity_holds_token_ids_and_the_versions_of_what_made_them(whole, tiny_folder, exam_rows):
    identity = json.loads((whole[0] / "run.json").read_text("utf-8"))
    for package in ("jaxlib", "tokenizers", "sentencepiece", "gguf", "safetensors", "jinja2"):
        assert identity["versions"][package] == version(package)
    scored, generated = (samples_of(whole[0], name) for name in ("choice-logprob-0shot", "strict-8tokens-0shot"))
    tokenizer = load_tokenizer(tiny_folder)
    asked = [list(sample["arguments"].values()) for sample in scored]
    pairs = [tokenizer.encode_pair(a["arg_0"], a["arg_1"]) for arguments in asked for a in arguments]
    for name, every in (
        ("choice-logprob-0shot", [ids for pair in pairs for ids in pair]),
        ("strict-8tokens-0shot", [tokenizer.encode(s["arguments"]["gen_args_0"]["arg_0"]) for s in generated]),
    ):
        packed = b"".join(struct.pack(f"<{len(ids) + 1}i", len(ids), *ids) for ids in every)
        assert identity["evaluations"][f"ward_en_{name}"]["tokens"] == hashlib.sha256(packed).hexdigest()


def test_changed_data_prompt_or_model_starts_anew_and_says_why(tiny_folder, exam, tmp_path, capsys, calls):
    out = tmp_path / "run"

    def note(model, *more):
        calls.clear()
        assert main(arguments(model, exam, out, "--protocol", "choice-logprob", "--limit", "4", *more)) == 0
        assert calls["score"] > 0
        lines = capsys.readouterr().out.splitlines()
        return next((line for line in lines if "held another run" in line), None)

    key = "ward_en_choice-logprob-0shot"
    assert note(tiny_folder) is None
    exam.write_text(exam.read_text("utf-8").replace('"points": 3', '"points": 2', 1), "utf-8")
    found = note(tiny_folder)
    assert re.fullmatch(
        rf"{re.escape(str(out))} held another run \(data of {key}: digest [0-9a-f]{{12}} -> [0-9a-f]{{12}}\); it was "
        rf"moved to {re.escape(str(out))}.old1, this one starts anew",
        found,
    )
    exam.write_text(exam.read_text("utf-8").replace("fever", "chills"), "utf-8")
    assert f"(data of {key}: digest " in note(tiny_folder)
    other = write_checkpoint(tmp_path / "other", seed=4)
    assert f"held another run (--model {tiny_folder} -> {other}); " in note(other)
    assert "(--seed 0 -> 1)" in note(other, "--seed", "1")
    assert "(--num-fewshot 0 -> 2; --seed 1 -> 0)" in note(other, "--num-fewshot", "2")
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run", *(f"run.old{n}" for n in range(1, 6))]


def test_options_beside_settings_are_refused():
    with pytest.raises(ValueError, match="got settings and limit, expected one or the other"):
        evaluate(EvalSettings(), limit=3)
    with pytest.raises(ValueError, match=r"models: got a, b in a call that grades one model, expected model="):
        evaluate(models="a,b")


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
    logprobs = _logprobs(samples_of(tmp_path / "out")).reshape(3, 2)
    assert np.isfinite(logprobs).all()
    np.testing.assert_allclose(logprobs, logprobs[:1].repeat(3, 0), atol=1e-5)  # the same question three times


@pytest.mark.slow
def test_smollm2_answers_real_questions(shared_data, smollm2_gguf, tmp_path):
    """Three IgakuQA questions after the authors' three demonstrations, by generation and by log-probability."""
    results = evaluate(
        model=str(smollm2_gguf), tasks="igakuqa", years="2022", sections="A", text_only=True, limit=3,
        protocol="kasai,choice-logprob", num_fewshot=3, data_dir=str(shared_data), out=tmp_path / "out",
        batch_size=4, max_new_tokens=8, **{"engine.row_tokens": 1024},
    )  # fmt: skip
    samples = samples_of(tmp_path / "out")
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
        assert verdict["reasons"] == ["3 of the 400 questions were asked; the pass marks are for all of them"]
        assert evaluation["scores"]["items"] == 3
    assert all(s["arguments"]["gen_args_0"]["arg_0"].count("<|im_start|>assistant\n") == 4 for s in samples)
