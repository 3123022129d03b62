"""Encoders on disk: weights and facts come back as they were on any mesh, whole or not at all."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_trees import same_bits

from medjax.models import ecg_mae
from medjax.models.ecg_mae import MaeConfig
from medjax.models.vit import VitConfig
from medjax.parallel.mesh import make_mesh
from medjax.parallel.sharding import PRESETS, shardings
from medjax.store import model_folder
from medjax.store.encoders import encoder_folder, load_encoder, save_encoder
from medjax.store.model_folder import read_record

ROOT = Path(__file__).resolve().parents[2]
RULES = PRESETS["default"]
CONFIG = MaeConfig(VitConfig((5,), 16, 3, 2, 32, lead_count=12, registers=2), 8, 1, 2)
FACTS = {
    "preprocessing": {"sampling_rate_hz": 250.0, "leads": ["I", "II"], "notch": "auto"},
    "targets": [{"name": "左室機能低下", "mean": 0.1, "sd": None}],
    "calibration": {"draws": [[1.0, -0.30000001], [0.1 + 0.2, 1e-300]]},
}


@pytest.fixture(scope="module")
def boxes():
    return ecg_mae.abstract_variables(CONFIG)["params"]


@pytest.fixture(scope="module")
def params(boxes):
    """Random numbers, spread over 8 devices."""
    rng, places = np.random.default_rng(0), shardings(boxes, make_mesh("fsdp=4,tensor=2"), RULES)
    return jax.tree.map(
        lambda place, box: jax.device_put(rng.normal(size=box.value.shape).astype(np.float32), place), places, boxes
    )


@pytest.fixture(scope="module")
def run(params, tmp_path_factory):
    """A run folder with a model in it."""
    run = tmp_path_factory.mktemp("run")
    save_encoder(run / "model", "ecg_mae", CONFIG.to_dict(), params, FACTS)
    return run


@pytest.mark.parametrize(("mesh", "devices"), [("data=2,fsdp=2,tensor=2", 8), ("tensor=2,fsdp=-1", 4), ("", 1)])
def test_what_was_saved_comes_back_on_any_mesh(run, params, boxes, mesh, devices):
    mesh, steps = make_mesh(mesh, jax.devices()[:devices]), []
    found = load_encoder(run, mesh, RULES, progress=lambda *step: steps.append(step))
    assert (found.kind, found.config, found.facts, found.folder) == ("ecg_mae", CONFIG.to_dict(), FACTS, run / "model")
    assert MaeConfig.from_dict(found.config) == CONFIG
    assert same_bits(found.params, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, found.params) == shardings(boxes, mesh, RULES)
    count = len(jax.tree.leaves(params))
    assert steps == [(i + 1, count) for i in range(count)]


def test_a_run_is_named_from_where_one_stands(run, params, monkeypatch):
    monkeypatch.chdir(run.parent)
    found = load_encoder(run.name, make_mesh(""), RULES)
    assert same_bits(found.params, params)
    assert found.folder == run / "model"
    assert len(found.digest()) == 64


def test_bfloat16_is_kept(params, tmp_path):
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    folder = save_encoder(tmp_path / "n", "ecg_mae", CONFIG.to_dict(), narrow, {})
    assert same_bits(load_encoder(folder, make_mesh(""), RULES).params, narrow)


def test_a_path_tells_its_kind_without_jax(run, tmp_path):
    """A run, its model folder, a language model, nothing at all; and a damaged record is an error."""
    decoder, broken = tmp_path / "decoder", tmp_path / "broken"
    for folder, text in ((decoder, '{"kind": "decoder"}'), (broken, '{"kind": ')):
        folder.mkdir()
        (folder / "medjax.json").write_text(text)
    code = f"""
import sys
from medjax.store.encoders import encoder_folder
print([str(encoder_folder(path)) for path in {[str(run), str(run / "model"), str(decoder), str(tmp_path), "hub/id"]}])
try:
    encoder_folder({str(broken)!r})
except ValueError as error:
    print(error)
print([name for name in ("jax", "flax", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, third = done.stdout.splitlines()
    assert first == str([str(run / "model"), str(run / "model"), "None", "None", "None"])
    assert second.startswith(f"{broken / 'medjax.json'}: not valid JSON (")
    assert third == "[]"


def test_digest_covers_weights_and_facts(run, params, tmp_path):
    def digest(folder):
        return load_encoder(folder, make_mesh(""), RULES).digest()

    first = digest(run)
    copy = shutil.copytree(run / "model", tmp_path / "copy")
    assert digest(copy) == first
    record = json.loads((copy / "medjax.json").read_text())
    record["facts"]["targets"][0]["mean"] = 0.2
    (copy / "medjax.json").write_text(json.dumps(record))
    assert digest(copy) != first
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["encoder"]["embedding"]["bias"] = np.nextafter(np.asarray(params["encoder"]["embedding"]["bias"]), np.inf)
    assert digest(save_encoder(tmp_path / "moved", "ecg_mae", CONFIG.to_dict(), moved, FACTS)) != first


def test_what_cannot_be_saved(run, params, tmp_path):
    config = CONFIG.to_dict()
    with pytest.raises(ValueError, match=r"model: is there already, expected a new folder; choose another"):
        save_encoder(run / "model", "ecg_mae", config, params, FACTS)
    with pytest.raises(ValueError, match=r"^kind: got 'vit', expected one of ecg_mae, ecg_predictor; name the kind"):
        save_encoder(tmp_path / "n", "vit", config, params, FACTS)
    with pytest.raises(ValueError, match=r"^params: .*: got float32\[16, 8\], expected float32\[16, 12\].*take config"):
        save_encoder(tmp_path / "n", "ecg_mae", config | {"decoder_embed": 12}, params, FACTS)
    with pytest.raises(ValueError, match=r"^params: mae: got unknown colour, expected exactly decoder, decoder_embed"):
        save_encoder(tmp_path / "n", "ecg_mae", config | {"colour": 1}, params, FACTS)
    for facts, message in (({"mean": float("nan")}, "not JSON compliant"), ({"mean": np.ones(2)}, "ndarray")):
        with pytest.raises(ValueError, match=rf"n/medjax\.json: .*{message}.*; expected plain JSON values with finite"):
            save_encoder(tmp_path / "n", "ecg_mae", config, params, facts)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_nothing(params, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(
            OSError, match=r"/n: the model could not be written: the disk is full \(No space .*it takes"
        ):
            save_encoder(tmp_path / "n", "ecg_mae", CONFIG.to_dict(), params, FACTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"got format 2 of kind 'ecg_mae', expected format 1 of kind 'ecg_mae' or 'ecg_predictor'; use"),
        ({"facts": None}, r"medjax\.json: no facts, expected a whole record; copy the folder again"),
        ({"config.masked": 2.0}, r"medjax\.json: mae\.masked: got 2\.0, expected a share between 0 and 1"),
        (
            {"config.vit.embed": 18},
            r"medjax\.json: .*encoder/embedding/bias: got float32\[16\], expected float32\[18\]",
        ),
        ({"config.vit.embed": None}, r"medjax\.json: mae\.vit: got no embed, expected exactly activation, channels"),
    ],
)
def test_records_that_are_wrong(run, tmp_path, change, message):
    folder = tmp_path / "copy"
    shutil.copytree(run / "model", folder, ignore=lambda *_: ["weights"])
    record = json.loads((folder / "medjax.json").read_text())
    for key, value in change.items():
        place = record
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        place.pop(last, None)
        if value is not None:
            place[last] = value
    (folder / "medjax.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        load_encoder(folder, make_mesh(""), RULES)


def test_folders_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got no medjax\.json, expected a model of kind ecg_mae or ecg_pred"):
        load_encoder(tmp_path, make_mesh(""), RULES)
    (tmp_path / "medjax.json").write_text('{"format": 1, "kind": "decoder"}')
    with pytest.raises(FileNotFoundError, match=r"got a model of another kind, expected a model of kind ecg_mae or"):
        load_encoder(tmp_path, make_mesh(""), RULES)
    with pytest.raises(ValueError, match=r"got format 1 of kind 'decoder', expected format 1 of kind 'ecg_mae';"):
        read_record(tmp_path, ("ecg_mae",), ())


def test_lost_weights_are_named(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run / "model", folder, ignore=lambda *_: ["ocdbt.process_0"])
    with pytest.raises(ValueError, match=r"copy/weights: the arrays cannot be read \(.*copy the folder again"):
        load_encoder(folder, make_mesh(""), RULES)
    assert encoder_folder(folder) == folder
    assert model_folder.model_files(folder)[0] == folder / "medjax.json"
