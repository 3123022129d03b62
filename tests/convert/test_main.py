"""The command: its help, what it refuses and how it says so, its exit statuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_adapters import CONFIG_OF, adapter_of
from tiny_decoders import CONFIGS, random_tensors, write_folder

from medjax.config import ConfigError, load
from medjax.convert import run
from medjax.convert.__main__ import main
from medjax.convert.settings import ConvertSettings
from medjax.store.adapters import write_adapter
from medjax.store.peft import write_peft

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(tmp_path):
    return write_folder(tmp_path / "base", CONFIGS["llama"], random_tensors(CONFIGS["llama"]))


@pytest.fixture
def error(tmp_path, capsys):
    """Run the command, which must fail and leave nothing behind; return its message."""

    def fail(*arguments, status=2):
        before = sorted(tmp_path.rglob("*"))
        assert main([str(argument) for argument in arguments]) == status
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err.splitlines()[-1].removeprefix("medjax.convert: ")

    return fail


def test_help_needs_no_jax():
    code = "import sys\nfrom medjax.convert.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('loaded', [m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m medjax.convert [CONFIG.toml]")
    assert done.stdout.splitlines()[-1] == "loaded []"
    for key in ("source", "to", "out", "adapter", "revision", "dtype", "quantisation", "shard_gb"):
        assert f"\n  --{key}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--to", "hf"], "out: no value given, expected str; set it in the file or by --out."),
        (["--to", "hf", "--out", "y"], "source: no value given, expected str; set it in the file or by --source."),
        (
            ["x", "--out", "y"],
            "to: no value given, expected one of hf, medjax, peft, adapter; set it in the file or by",
        ),
        (["x", "--to", "gguf", "--out", "y"], '--to: got "gguf", expected one of hf, medjax, peft, adapter; write for'),
        (["x", "--too", "hf"], "unknown option --too; did you mean --to?"),
        (
            ["x", "--to", "hf", "--out", "y", "--shard_gb", "0"],
            "--shard_gb: got 0.0, expected more than 0; 5 is usual.",
        ),
        (["x", "--to", "hf", "--out", "y", "--dtype", "int8"], '--dtype: got "int8", expected one of auto, float32, b'),
        (
            ["x", "--to", "hf", "--out", "y", "--quantise", "nf4"],
            "--quantise: got nf4 with --to hf, expected --to medjax, the only form that keeps it; leave one of them.",
        ),
        (
            ["x", "--to", "medjax", "--out", "y", "--quantise", "nf4", "--adapter", "z"],
            "--quantise: got nf4 and an adapter to merge, expected one of them; merge first, then convert",
        ),
        (["x", "--to", "hf", "--out", ""], "--out: got nothing, expected a folder; name a new one."),
    ],
)
def test_a_wrong_call_exits_before_anything_is_loaded(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"medjax.convert: {message}")


def test_a_toml_file_gives_the_options(tmp_path):
    file = tmp_path / "convert.toml"
    file.write_text('source = "x"\nto = "hf"\nout = "y"\nshard_gb = 2\n')
    settings = load(ConvertSettings, file, ["--dtype", "bfloat16"])
    assert settings == ConvertSettings(source="x", to="hf", out="y", dtype="bfloat16", shard_gb=2.0)
    with pytest.raises(ConfigError, match="got nothing, expected a model or an adapter"):
        load(ConvertSettings, file, {"source": ""})


def test_a_place_that_is_taken_is_left_alone(tmp_path, base, error):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine.txt").write_text("mine")
    for to in ("hf", "medjax"):
        found = error(base, "--to", to, "--out", tmp_path / "held")
        assert (
            found == f"{tmp_path}/held: got a folder that holds mine.txt, expected none or an empty one; name another."
        )
    found = error(base, "--to", "hf", "--out", tmp_path / "held" / "mine.txt")
    assert found == f"{tmp_path}/held/mine.txt: got a file, expected a folder or nothing; name another."


def test_models_that_cannot_be_read_are_named(tmp_path, base, error):
    out = tmp_path / "out"
    assert error(tmp_path / "none", "--to", "hf", "--out", out).startswith(
        f"model: got '{tmp_path}/none', which is no f"
    )
    (tmp_path / "model.bin").write_bytes(b"\x80\x02")
    assert "model.bin: pickle files can run code" in error(tmp_path / "model.bin", "--to", "hf", "--out", out)
    assert error(base, "--to", "hf", "--out", out, "--revision", "main").startswith(
        "revision: got 'main' for the model"
    )
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-9])
    assert "not a whole safetensors file" in error(base, "--to", "hf", "--out", out)


def test_adapters_that_do_not_belong_are_named(tmp_path, base, error):
    out = ("--out", tmp_path / "out")
    assert error(base, "--to", "peft", *out).startswith(
        "--to peft: got no adapter, expected one; name it with --adapter"
    )
    other = write_adapter(tmp_path / "other", adapter_of("llama", ("query",)))
    found = error(base, "--adapter", other, "--to", "hf", *out)
    assert found.startswith(f"{other}: got base model {base} with digest ")
    assert "expected tiny with digest bbbbbbbbbbbb, which it was trained on; name that model" in found
    assert error(base, "--adapter", tmp_path / "none", "--to", "hf", *out).startswith(
        f"{tmp_path}/none: no such folder"
    )
    found = error(other, "--to", "hf", *out)
    assert found.startswith(
        f"{other}: its model tiny cannot be had here (model: got 'tiny', which is no file or folder"
    )
    assert found.endswith(f"Name it where it lies: medjax.convert MODEL --adapter {other}")
    found = error(other, "--adapter", other, "--to", "hf", *out)
    assert found.startswith(f"source: got the adapter {other} and --adapter {other}, expected a model and an adapter")
    unnamed = tmp_path / "peft"
    write_peft(unnamed, replace(adapter_of("llama", ("query",)), base=""), CONFIG_OF["llama"])
    found = error(unnamed, "--to", "adapter", *out)
    assert found.startswith(
        f"{unnamed}: got an adapter that does not name its model, expected one that does; name it: "
    )
    record = json.loads((unnamed / "adapter_config.json").read_text()) | {"use_dora": True}
    (unnamed / "adapter_config.json").write_text(json.dumps(record))
    found = error(base, "--adapter", unnamed, "--to", "hf", *out)
    assert found.startswith(f"{unnamed}/adapter_config.json: got use_dora=True, which is not supported")


def test_a_config_that_the_format_cannot_say_is_found_before_loading(tmp_path, base, error, monkeypatch):
    source = run.open_source(base)
    source.config = replace(source.config, query_scale=0.5)
    monkeypatch.setattr(run, "open_source", lambda path: source)
    monkeypatch.setattr(run, "load_decoder", None)
    found = error(base, "--to", "hf", "--out", tmp_path / "out")
    assert found.startswith("llama: got a model with query_scale=0.5, expected what a Hugging Face config.json")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (
            MemoryError(),
            1,
            "out of memory: got a model that does not fit into host memory; take --dtype bfloat16, or a",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: x\ny"), 1, "RESOURCE_EXHAUSTED: x: got a model that does not fit into host"),
        (KeyboardInterrupt(), 75, "stopped; nothing was written."),
    ],
)
def test_exit_statuses(tmp_path, base, error, monkeypatch, raised, status, message):
    def fail(folder, *inputs, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise raised

    monkeypatch.setattr(run, "save_hugging_face", fail)
    assert error(base, "--to", "hf", "--out", tmp_path / "out", status=status).startswith(message)


def test_other_errors_are_not_swallowed(tmp_path, base, monkeypatch):
    def fail(folder, *inputs, **options):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(run, "save_hugging_face", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main([str(base), "--to", "hf", "--out", str(tmp_path / "out")])
    assert [place.name for place in tmp_path.iterdir()] == ["base"]
