"""The command on fake CPU devices: figures against shapes, what is printed and written, and how it ends."""

import json
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from medjax.config import load
from medjax.models.decoder_config import from_hugging_face
from medjax.models.published import NAMES, published
from medjax.plan import program as plan_program
from medjax.plan.__main__ import main
from medjax.plan.memory import estimate
from medjax.plan.program import decoder_of, planned_step
from medjax.plan.run import plan
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


def test_the_run_is_the_plan_without_its_own_keys():
    run = run_settings(settings("--optimizer.learning_rate", "3e-4"))
    assert type(run) is TrainSettings
    assert run.optimizer.learning_rate == 3e-4
    assert run.data.window == 256


def test_autoencoders_and_predictors_are_planned():
    given = ["--topology", "cpu:2", "--encoder.size", "nano", "--encoder.patch", "50", "--signal.samples", "500"]
    for objective, more in (("mae", []), ("classify", ["--targets", "lvsd"]), ("regress", ["--targets", "age"])):
        assert main(["--objective", objective, "--train.batch_size", "4", *given, *more]) == 0


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
