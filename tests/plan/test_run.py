"""The command on fake CPU devices: figures against shapes, what is printed and written, and how it ends."""

import json
import os
import re
import shlex
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from medjax.config import load
from medjax.models.decoder_config import from_hugging_face
from medjax.models.published import NAMES, published
from medjax.plan import program as plan_program
from medjax.plan.__main__ import main
from medjax.plan.hlo import Loop, parse
from medjax.plan.memory import estimate
from medjax.plan.program import decoder_of, planned_step
from medjax.plan.run import plan, tables
from medjax.plan.settings import LanguagePlanSettings, run_settings
from medjax.train.flops import TrainingFlops, attended_pairs
from medjax.train.settings import TrainSettings

LLAMA = {
    **{"model_type": "llama", "vocab_size": 512, "num_hidden_layers": 3, "hidden_size": 64, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "hidden_act": "silu"},
    **{"max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False},
}
GIVEN = ["--topology", "cpu:4", "--mesh", "fsdp=2,tensor=2", "--window", "256", "--batch-size", "4", "--lora.rank", "8"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(plan_program, "decoder_of", lambda name: from_hugging_face(LLAMA))


def settings(*more):
    return load(LanguagePlanSettings, overrides=[*GIVEN, *more])


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_program, "decoder_of", lambda name: from_hugging_face(LLAMA))
        return plan(settings())


def test_bytes_of_groups_are_those_of_shapes(found):
    config = from_hugging_face(LLAMA)
    adapters = TrainingFlops(config, "lora", found.step.program.lora).adapter_params
    # a and b are split over fsdp or tensor or both; Adam keeps two moments and a count
    trained = found.groups["trained parameters"]
    assert adapters * 4 / 4 <= trained <= adapters * 4 / 2
    assert found.groups["optimiser"] == pytest.approx(2 * trained, abs=64)
    weights = 4 * (config.matmul_params + 2 * config.vocab_size * config.embed)
    norms = 4 * (2 * config.layers + 1) * config.embed
    assert found.groups["frozen parameters"] == weights // 4 + norms // 2  # norms are split over fsdp alone
    assert found.groups["batch"] == 5 * 4 * 4 * 256 // 2
    assert sum(found.groups.values()) == estimate(found.step).arguments


def test_model_operations_are_those_of_training(found):
    config = from_hugging_face(LLAMA)
    flops = TrainingFlops(config, "lora", found.step.program.lora)
    tokens, pairs = 4 * 256, 4 * attended_pairs(config, np.arange(256))
    assert found.step.per_step == tokens
    assert found.step.model_flops == flops.of_step(tokens, pairs, tokens)
    assert found.step.turns == {"loss": 1}
    assert 4 * found.flops > found.step.model_flops / 2


def test_a_cpu_has_no_roofline(found):
    assert (found.roofline, found.mfu, found.per_chip_s, found.fits()) == (None, None, None, None)


def test_json_and_tables(tmp_path, capsys):
    assert main([*GIVEN, "--json", str(tmp_path / "plan.json"), "--plan.hlo", str(tmp_path / "plan.hlo")]) == 0
    written = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    for key in ("fits", "peak_gib", "hbm_gib", "tokens_per_s_per_chip", "mfu", "limit", "compile_s"):
        assert key in written
    assert written["mesh"] == {"fsdp": 2, "tensor": 2}
    assert written["peak_gib"] * 2**30 == written["memory"]["peak"]
    assert written["memory"]["argument"] <= sum(written["groups"].values()) + 64
    assert {"all-gather", "all-reduce"} <= {entry["kind"] for entry in written["collectives"]}
    assert "python -m medjax.plan" in written["command"]
    printed = capsys.readouterr().out
    assert "1,024 tokens a step on cpu:4 (4 chips, fsdp=2, tensor=2)" in printed
    assert "by arithmetic alone" in printed
    assert (tmp_path / "plan.hlo").read_text().startswith("HloModule")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v9:2x2"], "topology: got 'v9:2x2', expected KIND:SHAPE or KIND-CHIPS of what there is"),
        (["--mesh", "fsdp=3"], "mesh: 'fsdp=3' needs 3 devices, there are 4"),
        (["--batch-size", "3"], "train.batch_size: got 3 rows, expected a multiple of 2"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(options, message, capsys):
    assert main([*GIVEN, *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"medjax.plan: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plan.tries", "5"], "plan.tries: got 5 without a search, which alone reads it; add --search"),
        (["--plan.batches", "8,16"], "plan.batches: got (8, 16) without a search"),
        (["--plan.out", "somewhere"], "plan.out: got somewhere without a search"),
        (["--objective", "score", "--plan.margin", "0.3"], "plan.margin: got 0.3 without a search"),
        (["--search", "--mesh", "fsdp=4"], "mesh.shape: got fsdp=4 with --search, which tries all that there are"),
        (["--search", "--train.accumulation=2"], "train.accumulation: got 2 with --search"),
        (["--plan.hlo", "x", "--plan.compile", "false"], "plan.hlo: got x where nothing is compiled"),
        (["--search", "--plan.hlo", "x", "--plan.tries", "0"], "plan.hlo: got x where nothing is compiled"),
    ],
)
def test_options_without_effect_are_refused(options, message, capsys):
    assert main(["--topology", "cpu:4", "--model", "any", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"medjax.plan: {message}")


def test_a_search_keeps_no_mesh_of_a_file_and_writes_the_best_program(tmp_path):
    """The file's mesh would not even fit the slice."""
    (tmp_path / "run.toml").write_text('[mesh]\nshape = "fsdp=64"\n[data]\nwindow = 128\n', "utf-8")
    given = [str(tmp_path / "run.toml"), "--topology", "cpu:2", "--search", "--batch-size", "2", "--plan.tries", "1"]
    given += ["--plan.quantisations", "none", "--plan.batches", "2", "--plan.out", str(tmp_path / "plan")]
    assert main([*given, "--plan.hlo", str(tmp_path / "best.hlo")]) == 0
    assert json.loads((tmp_path / "plan" / "plan.json").read_text("utf-8"))["best"]["mesh"] != "fsdp=64"
    program = parse((tmp_path / "best.hlo").read_text("utf-8"))
    assert program.partitions == 2


def _arithmetic(capsys, *options):
    """Exit status and standard output of a plan by arithmetic."""
    status = main([*GIVEN, "--dtype", "bfloat16", "--plan.compile", "false", *options])
    return status, capsys.readouterr().out


def test_the_parts_of_the_estimate_add_up(capsys):
    _, printed = _arithmetic(capsys, "--topology", "v5e:2x2")
    table = printed.split("\n\n")[1].splitlines()[2:]
    sizes = {name.strip(): float(size) for name, size in (line.split("│") for line in table)}
    total = sizes.pop("by arithmetic alone")
    assert sum(sizes.values()) == pytest.approx(total, abs=0.0005 * len(sizes))
    assert sizes["code, by arithmetic"] == 0.047


def test_what_must_stay_free_is_said(capsys):
    status, printed = _arithmetic(capsys, "--topology", "v5e:2x2", "--plan.spare_gib", "8")
    words = r"fits, ([\d.]+) GiB to spare, of which 8.00 were to stay free \(plan.spare_gib\): ([\d.]+) of"
    room = re.search(words, printed)
    assert status == 0
    assert float(room[1]) + float(room[2]) == pytest.approx(15.75, abs=0.011)
    status, printed = _arithmetic(capsys, "--topology", "v5e:2x2", "--plan.spare_gib", "15.75")
    assert status == 1
    assert re.search(
        r"DOES NOT FIT: 0\.\d\d GiB are missing with 15.75 that must stay free \(plan.spare_gib\)", printed
    )


def test_a_gpus_memory_is_explained(capsys):
    _, printed = _arithmetic(capsys, "--topology", "gpu:h100:4")
    assert "60.00 GiB are the 75 % of 80 GiB that JAX takes of a GPU when it starts" in printed
    _, printed = _arithmetic(capsys, "--topology", "v5e:2x2")
    assert "when it starts" not in printed


def test_gpus_without_their_plugin_ask_nobody_for_a_tpu(capsys, monkeypatch):
    for plugin, asked in ((None, "cpu"), (object(), None)):
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, plugin=plugin: plugin)
        _arithmetic(capsys, "--topology", "gpu:h100:4")
        assert os.environ.get("JAX_PLATFORMS") == asked


def test_a_mesh_of_the_file_is_named_as_such(tmp_path, capsys):
    (tmp_path / "run.toml").write_text('[mesh]\nshape = "fsdp=8"\n')
    given = [str(tmp_path / "run.toml"), "--topology", "v5e:4x4", "--plan.compile", "false"]
    assert main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "'fsdp=8' needs 8 devices, there are 16" in error
    assert error.endswith(
        f'It is mesh.shape = "fsdp=8" of {tmp_path}/run.toml, for another slice; --mesh in the command replaces it.'
    )
    assert main([*given, "--mesh", "fsdp=4"]) == 2
    assert "run.toml" not in capsys.readouterr().err


def test_the_first_example_of_the_help_runs(monkeypatch, capsys):
    """Its file is for another slice, whose mesh it replaces."""
    from medjax.plan.__main__ import _EXAMPLES

    monkeypatch.setattr(plan_program, "decoder_of", published)
    monkeypatch.chdir(Path(__file__).parents[2])
    first = shlex.split(_EXAMPLES.splitlines()[1])[3:]
    assert first[1:3] == ["--topology", "v5e:4x4"]
    assert main([*first, "--plan.compile", "false"]) == 0
    assert "fsdp=16" in capsys.readouterr().out


def test_a_slice_by_arithmetic_needs_no_compiler(tmp_path, monkeypatch, capsys):
    """Also its JSON: the versions are those of what took part."""
    from medjax.store import provenance

    def version(name):
        if name == "libtpu":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(provenance, "version", version)
    options = ["--topology", "v5e:2x2", "--plan.compile", "false", "--json", str(tmp_path / "plan.json")]
    assert main([*GIVEN, *options]) == 0
    written = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert written["compile_s"] is None
    assert "libtpu" not in written["versions"]
    assert main([*GIVEN, *options[:-1], str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_what_is_not_known_and_what_is_too_long_is_said(tmp_path, capsys):
    """Two hosts of L40S, whose network is not known; rows of 2,048 tokens for a context of 1,024."""
    options = ["--topology", "gpu:l40s:16", "--mesh", "data=2,fsdp=8", "--batch-size", "16", "--plan.compile", "false"]
    assert main([*GIVEN, *options, "--window", "2048", "--json", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"links data dcn\W+not known", printed)
    assert "no bandwidth is known of data dcn here" in printed
    assert "data.window: rows of 2,048 tokens are longer than the 1,024 that the model was made for" in printed
    assert json.loads((tmp_path / "plan.json").read_text("utf-8"))["seconds"]["unknown"] == ["data dcn"]
    assert main([*GIVEN, "--topology", "gpu:l40s:4", "--plan.compile", "false"]) == 0
    printed = capsys.readouterr().out
    assert "no bandwidth is known" not in printed
    assert "that the model was made for" not in printed


def test_loops_whose_end_is_data_are_counted_and_named(found):
    loops = (Loop("while.1", "jit(step)/jvp(loss)/while", "main", 8, True), Loop("while.2", "", "main", None))
    printed = tables(replace(found, loops=loops), 0.0)
    assert "loops whose end is data: 1, turns counted as with full rows: 8\n" in printed
    assert printed.endswith("loops whose turns nothing says: 1, counted once: while.2")
    assert "counted" not in tables(replace(found, loops=()), 0.0)
    # chunks of the loss; blockwise attention, which skips blocks that no query sees
    assert {loop.turns for loop in found.loops} == {1, None}


def test_the_run_is_the_plan_without_its_own_keys():
    run = run_settings(settings("--optimizer.learning_rate", "3e-4"))
    assert type(run) is TrainSettings
    assert run.optimizer.learning_rate == 3e-4
    assert run.data.window == 256


@pytest.mark.parametrize(
    ("objective", "more", "passes"),
    [
        ("mae", [], None),
        ("classify", ["--targets", "lvsd,mi"], 3),
        ("regress", ["--targets", "age", "--finetune.trained", "probe"], 1),
    ],
)
def test_autoencoders_and_predictors_are_planned(objective, more, passes, tmp_path):
    """Twelve leads of ten patches; nano: four blocks of 64 numbers. A probe has no gradient below its head."""
    file = tmp_path / "plan.json"
    given = ["--topology", "v5e:1x2", "--encoder.size", "nano", "--encoder.patch", "50", "--signal.samples", "500"]
    given += ["--objective", objective, "--train.batch_size", "4", "--plan.compile", "false", "--json", str(file)]
    assert main([*given, *more]) == 0
    found = json.loads(file.read_text("utf-8"))
    assert (found["unit"], found["per_step"], found["fits"], found["mesh"]) == ("records", 4, True, {"fsdp": 2})
    assert found["records_per_s_per_chip"] == pytest.approx(2 / found["seconds"]["step"])
    targets = 2 if objective == "classify" else 1  # an autoencoder's batch has one too, and does not read it
    # of two records: signal in float32 and where it is known; targets, where those are known, a weight of the record
    assert found["groups"]["batch"] == 2 * (12 * 500 * 5 + 2 * targets * 4 + 4)
    # Adam's two moments, and its count and whatever is not split
    trained, optimiser = found["groups"]["trained parameters"], found["groups"]["optimiser"]
    assert optimiser == pytest.approx(2 * trained, abs=64)
    assert (found["groups"]["frozen parameters"] > 0) == (passes == 1)
    if passes:  # four records; 2 a weight and token, 4 a pair of tokens and number
        layer = 120 * 2 * (4 * 64**2 + 2 * 64 * 256) + 4 * 64 * 120**2
        assert found["model_flops"] == 4 * passes * 4 * layer


def test_published_shapes_have_the_published_sizes(monkeypatch):
    monkeypatch.undo()
    sizes = {"7b": 6.74, "8b": 8.03, "13b": 13.02, "70b": 68.98}
    for name in NAMES:
        config = published(name)
        count = config.matmul_params + (1 if config.tied else 2) * config.vocab_size * config.embed
        known = next((size for part, size in sizes.items() if f"llama-2-{part}" in name.lower()), None)
        if known:
            assert count / 1e9 == pytest.approx(known, abs=0.01)
        assert decoder_of(name) == config
    assert published("META-LLAMA/Llama-2-7B-HF") == published("meta-llama/Llama-2-7b-hf")
    with pytest.raises(ValueError, match=r"got nobody/nothing, expected a folder with its config\.json"):
        decoder_of("nobody/nothing")


def test_the_schedule_needs_no_data():
    run = load(TrainSettings, overrides={"mesh.shape": "data=8", "train.batch_size": "8", "data.window": "128"})
    assert planned_step(run, None).per_step == 8 * 128
