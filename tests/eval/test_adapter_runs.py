"""Base and adapter in one run: numbers of the merged model, the comparison, and adapters that do not fit."""

import json

import numpy as np
import pytest
from small_runs import arguments, results_of, samples_of
from tiny_adapter import ALPHA, RANK, TARGETS, write_merged, write_rounded, write_run
from tiny_checkpoint import write_checkpoint

from medjax.data.text.tokenizer import load_tokenizer
from medjax.eval.__main__ import main
from medjax.statistics.differences import paired
from medjax.statistics.intervals import mcnemar
from medjax.store.adapters import files_digest

pytestmark = pytest.mark.usefixtures("compile_once")
LOGPROB, STRICT = "ward_en_choice-logprob-0shot", "ward_en_strict-8tokens-0shot"


def _digests(folder):
    files = tuple(folder / name for name in ("config.json", "model.safetensors"))
    return {"base_digest": files_digest(files), "tokenizer_digest": load_tokenizer(folder).digest}


@pytest.fixture(scope="module")
def adapter_run(tiny_folder, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("train") / "ward", tiny_folder, **_digests(tiny_folder))


@pytest.fixture(scope="module")
def merged(tiny_folder, adapter_run, tmp_path_factory):
    return write_merged(tmp_path_factory.mktemp("merged") / "model", tiny_folder, adapter_run)


@pytest.fixture
def both(tiny_folder, adapter_run, exam, tmp_path, capsys):
    """A run that grades both: its folder, and what it printed."""
    out = tmp_path / "both"
    assert main(arguments(tiny_folder, exam, out, "--adapter", str(adapter_run), "--resamples", "300")) == 0
    return out, capsys.readouterr().out


def _logprobs(samples):
    return np.asarray([float(pair[0]) for sample in samples for pair in sample["filtered_resps"]])


def test_shards_of_base_and_adapter_give_the_same_files(both, tiny_folder, adapter_run, exam, tmp_path):
    out = tmp_path / "sharded"
    more = ("--adapter", str(adapter_run), "--resamples", "300")
    for shard in ("1/2", "2/2"):
        assert main(arguments(tiny_folder, exam, out, *more, "--shard", shard)) == 0
    assert (out / "samples.jsonl").read_bytes() == (both[0] / "samples.jsonl").read_bytes()
    one, two = (results_of(folder)["medjax"] for folder in (both[0], out))
    assert two["comparisons"] == one["comparisons"]
    assert list(two["shards"]) == ["1/2", "2/2"]


def test_base_and_adapter_are_the_base_and_the_merged_model(both, merged, tiny_folder, exam, tmp_path):
    out, _ = both
    for variant, model in (("base", tiny_folder), ("adapter", merged)):
        alone = tmp_path / f"alone-{variant}"
        assert main(arguments(model, exam, alone)) == 0
        for name in (LOGPROB, STRICT):
            expected = samples_of(alone, name)
            found = [s for s in samples_of(out) if s["task"].startswith(name) and s["variant"] == variant]
            assert len(found) == len(expected) == 24
            assert [s["doc"]["id"] for s in found] == [s["doc"]["id"] for s in expected]
            assert [s["prompt_hash"] for s in found] == [s["prompt_hash"] for s in expected]
            if name == LOGPROB:
                np.testing.assert_allclose(_logprobs(found), _logprobs(expected), atol=1e-4)
            else:
                assert [s["resps"] for s in found] == [s["resps"] for s in expected]
            assert [s["picked"] for s in found] == [s["picked"] for s in expected]
    samples = samples_of(out)
    base, adapter = (_logprobs(s for s in samples if s["task"] == LOGPROB + end) for end in ("", "_adapter"))
    assert np.abs(base - adapter).max() > 1


def test_the_record_holds_both_and_their_comparison(both, adapter_run, tiny_folder):
    out, printed = both
    results = results_of(out)
    record = results["medjax"]
    assert [(e["id"], e["variant"]) for e in record["evaluations"]] == [
        *((LOGPROB, "base"), (f"{LOGPROB}_adapter", "adapter")),
        *((STRICT, "base"), (f"{STRICT}_adapter", "adapter")),
    ]
    assert record["evaluations"][0]["prompt_digest"] == record["evaluations"][1]["prompt_digest"]
    adapter = record["adapter"]
    assert adapter["name"] == str(adapter_run)
    assert adapter["base_digest"] == record["model"]["digest"] == _digests(tiny_folder)["base_digest"]
    assert (adapter["rank"], adapter["alpha"], adapter["targets"]) == (RANK, ALPHA, list(TARGETS))
    # layers x rank x (input + output) of query, value, out and down
    assert adapter["parameters"] == 2 * RANK * ((32 + 32) + (32 + 16) + (32 + 32) + (56 + 32))
    assert len(adapter["digest"]) == 64
    identity = json.loads((out / "run.json").read_text("utf-8"))
    assert (identity["adapter"], identity["model"]) == (adapter["digest"], record["model"]["digest"])
    assert f"--adapter {adapter_run}" in record["command"]
    assert any(name.startswith("base: score") for name in record["compiled_seconds"])
    assert any(name.startswith("adapter: score") for name in record["compiled_seconds"])
    assert len(record["comparisons"]) == 2
    for comparison, name in zip(record["comparisons"], (LOGPROB, STRICT), strict=True):
        assert (comparison["first"], comparison["second"]) == (name, f"{name}_adapter")
        first, second = (
            [s["correct"] for s in samples_of(out) if s["task"] == task] for task in (name, f"{name}_adapter")
        )
        test = mcnemar(first, second)
        interval = paired(test.only_first, test.only_second, 24)
        assert comparison["accuracy_difference"] == pytest.approx((sum(second) - sum(first)) / 24)
        assert comparison["accuracy_difference_interval"] == [interval.low, interval.high]
        assert (comparison["only_first"], comparison["only_second"]) == (test.only_first, test.only_second)
        low, high = comparison["accuracy_difference_interval"]
        difference = 100 * comparison["accuracy_difference"]
        shown = f"{difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        assert any(name.partition("_en_")[2] in line and shown in line for line in printed.splitlines())
    heads = [[cell.strip() for cell in line.split("│")] for line in printed.splitlines()]
    table = next(number for number, cells in enumerate(heads) if "graded" in cells)
    # one set, said once
    assert heads[table][:3] == ["protocol", "graded", "accuracy (95 %)"]
    (above,) = heads[table - 1]
    assert above.startswith(f"set {record['evaluations'][0]['task']} (en), items 24, chance ")


def test_a_run_without_an_adapter_keeps_its_layout(tiny_folder, exam, tmp_path):
    assert main(arguments(tiny_folder, exam, tmp_path / "out", "--protocol", "choice-logprob")) == 0
    record = results_of(tmp_path / "out")["medjax"]
    assert not {"adapter", "comparisons"} & set(record)
    assert "variant" not in record["evaluations"][0]
    assert "variant" not in samples_of(tmp_path / "out")[0]
    assert "adapter" not in json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))


def test_another_adapter_is_another_run(both, adapter_run, tiny_folder, exam, tmp_path, capsys):
    out, _ = both
    other = write_run(tmp_path / "other", tiny_folder, seed=6)
    assert main(arguments(tiny_folder, exam, out, "--adapter", str(other), "--protocol", "choice-logprob")) == 0
    assert f"held another run (--adapter {adapter_run} -> {other}; " in capsys.readouterr().out
    again = write_run(tmp_path / "copy", tiny_folder, seed=6)
    assert main(arguments(tiny_folder, exam, out, "--adapter", str(again), "--protocol", "choice-logprob")) == 0
    assert "holds this run already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_quantised_base_is_the_rounded_model(tiny_folder, exam, tmp_path, capsys):
    rounded, run = write_rounded(tmp_path / "rounded", tiny_folder), write_run(tmp_path / "run", tiny_folder)
    more = ("--protocol", "choice-logprob", "--adapter", str(run))
    assert main(arguments(rounded, exam, tmp_path / "plain", *more)) == 0
    assert main(arguments(tiny_folder, exam, tmp_path / "int8", *more, "--quantise", "int8")) == 0
    record = results_of(tmp_path / "int8")["medjax"]
    assert record["model"]["quantisation"] == "int8"
    assert record["model"]["parameters"] == results_of(tmp_path / "plain")["medjax"]["model"]["parameters"]
    assert "--quantisation int8" in record["command"]
    for name in (LOGPROB, f"{LOGPROB}_adapter"):
        found, expected = (_logprobs(samples_of(tmp_path / out, name)) for out in ("int8", "plain"))
        np.testing.assert_allclose(found, expected, atol=1e-3)
    again = arguments(tiny_folder, exam, tmp_path / "int8", *more)
    capsys.readouterr()
    assert main(again) == 0
    assert "held another run (--quantisation int8 -> none)" in capsys.readouterr().out


@pytest.mark.slow
def test_eight_devices_give_the_scores_of_one(both, tiny_folder, adapter_run, exam, tmp_path):
    import jax

    if len(jax.devices()) != 8:
        pytest.skip(f"needs 8 devices, there are {len(jax.devices())}")
    more = ("--adapter", str(adapter_run), "--mesh", "data=2,fsdp=2,tensor=2", "--protocol", "choice-logprob")
    assert main(arguments(tiny_folder, exam, tmp_path / "mesh", *more)) == 0
    name = f"{LOGPROB}_adapter"
    np.testing.assert_allclose(
        _logprobs(samples_of(tmp_path / "mesh", name)), _logprobs(samples_of(both[0], name)), atol=1e-4
    )


def test_the_folder_is_named_after_model_and_adapter(tiny_folder, adapter_run, exam, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = [*arguments(tiny_folder, exam, "none", "--protocol", "choice-logprob", "--limit", "2")]
    assert main([*base, "--adapter", str(adapter_run)]) == 0
    assert [path.name for path in (tmp_path / "runs/eval").iterdir()] == ["tiny-ward-ward_en-choice-logprob-0shot"]


def test_adapters_that_do_not_fit_are_refused(tiny_folder, exam, tmp_path, capsys):
    out = tmp_path / "out"

    def refused(adapter, model=tiny_folder):
        assert main(arguments(model, exam, out, "--adapter", str(adapter), "--limit", "1")) == 2
        assert not out.exists()
        return capsys.readouterr().err

    missing = refused(tmp_path / "nowhere", model=tmp_path / "no-model")  # before the model is looked for
    assert missing.startswith(f"medjax.eval: {tmp_path / 'nowhere'}: no such folder; expected an adapter folder")
    other = write_checkpoint(tmp_path / "other", seed=9)
    run = write_run(tmp_path / "run", other, **_digests(other))
    message = refused(run)
    assert f"got base model {tiny_folder} with digest {_digests(tiny_folder)['base_digest'][:12]}" in message
    assert f"expected {other} with digest {_digests(other)['base_digest'][:12]}" in message
    tokenizer = write_run(tmp_path / "tokenizer", tiny_folder, **_digests(tiny_folder) | {"tokenizer_digest": "9" * 64})
    assert "got a tokenizer with digest" in refused(tokenizer)
    assert "999999999999, which it was trained with" in refused(tokenizer)
