"""The search: what is compiled, what is chosen, what is said where nothing fits, and the files that it leaves."""

import json
import re
import shlex
import tomllib
from dataclasses import replace

import pytest

from medjax.config import load
from medjax.models.published import published
from medjax.parallel.chips import GIB
from medjax.parallel.topology import topology
from medjax.plan import found as results
from medjax.plan import program
from medjax.plan.candidates import candidates
from medjax.plan.devices import named_devices
from medjax.plan.memory import estimate
from medjax.plan.program import planned_step
from medjax.plan.run import Plan
from medjax.plan.search import choice, described, first_of, front, larger_slices, search, searched, tried
from medjax.plan.settings import EcgPlanSettings, LanguagePlanSettings, check_options
from medjax.train.ecg_settings import EcgTrainSettings
from medjax.train.language_program import step_program
from medjax.train.settings import TrainSettings

V5E = {"plan.topology": "v5e:2x2", "plan.compile": "false", "train.batch_size": "4"}


@pytest.fixture
def fake(tiny):
    """A compiler that needs so many bytes for every program, and keeps what it was asked for."""
    asked = []

    def make(place, needed):
        def compiles(way):
            asked.append(way.settings)
            step = planned_step(way.settings, named_devices(place))
            guess = estimate(step)
            peak = needed(len(asked), guess.peak)
            return Plan(step, place, place.chip.usable_hbm_bytes, {}, guess, compiled=_Compiled(peak))

        return compiles, asked

    return make


class _Compiled:
    def __init__(self, peak):
        self.memory = type("Memory", (), {"peak": peak})()


def test_by_arithmetic_alone(tiny):
    found = search(tiny(V5E))
    assert found.compiled == ()
    assert found.best.found is None
    assert found.fitting == found.count
    assert choice(found.best.rank, found.best.way, found.own) == min(
        choice(one.rank, one.way, found.own) for one in found.ways
    )
    assert "by arithmetic alone, not compiled" in results.search_tables(found)


def test_so_many_are_compiled_and_no_kind_twice(tiny, fake):
    settings, place = tiny(V5E | {"plan.tries": "4"}), topology("v5e:2x2")
    compiles, asked = fake(place, lambda number, guess: GIB)
    found = searched(settings, place, compiles)
    assert len(found.compiled) == len(asked) == 4
    assert len({one.kind for one in found.compiled}) == 4
    assert found.best in found.compiled
    assert found.best.away == pytest.approx(found.best.estimated.peak / GIB - 1)


def test_the_best_is_in_table_json_and_picture(tiny, monkeypatch):
    """Llama 3 8B on four chips: the fastest of most kinds does not fit, and hides none that does."""
    monkeypatch.setattr(program, "decoder_of", lambda name: published("meta-llama/Meta-Llama-3-8B"))
    settings = tiny(V5E | {"data.window": "2048", "train.batch_size": "16", "plan.batches": "16"})
    found = search(settings)
    assert found.best in found.ways
    # of every mesh, quantisation and attention of which any way fits, one that fits is kept
    kinds = {one.kind for one in found.ways if one.estimated.peak <= found.room}
    fitting = [tried(way, found.topology) for way in candidates(settings, found.topology)]
    assert kinds == {one.kind for one in fitting if one.estimated.peak <= 0.85 * found.usable}
    rows = [line.split("│") for line in results.search_tables(found).splitlines() if line.count("│") == 8][1:]
    shown = [float(row[3]) for row in rows]
    assert max(shown) <= 0.85 * found.usable / GIB
    assert shown[0] == pytest.approx(found.best.estimated.peak / GIB, abs=0.005)
    assert {row[7].strip() for row in rows} == {"arithmetic"}
    figures = results.to_json(found, settings)
    assert [one["settings"] for one in figures["ways"] if one["settings"]] == [figures["best"]["settings"]]
    rate = figures["best"]["tokens_per_s_per_chip"]
    assert f"{1e6 / rate:.4g}"[:4] in results.picture(found)


def test_the_runs_own_weights_are_kept_unless_others_are_clearly_faster(tiny):
    """int8 takes half the memory of weights here and no less time: no reason to train on other numbers."""
    found = search(tiny(V5E | {"plan.batches": "4"}))
    assert found.best.way.stored == "bfloat16"
    assert found.changes == []
    own = found.own
    packed = next(one for one in found.ways if one.way.stored == "int8")
    plain = next(one for one in found.ways if one.way.stored == "bfloat16" and one.way.settings.train.accumulation == 1)
    parts = 1 + 0.002 * (packed.way.settings.train.accumulation - 1)
    assert choice(1.0, packed.way, own) == pytest.approx(parts + 0.1)
    assert choice(1.0, plain.way, own) == 1.0
    only = search(tiny(V5E | {"plan.batches": "8", "plan.quantisations": "nf4"}))
    assert only.changes == ["weights in nf4, not bfloat16", "batch 8, not 4"]
    words = "this is another training than the one asked for: weights in nf4, not bfloat16; batch 8, not 4"
    assert words in results.search_tables(only)


def test_rates_of_two_kinds_are_told_apart(tiny, fake):
    """A compiled program that takes twice as long as arithmetic says."""
    place = topology("v5e:2x2")
    compiles, _ = fake(place, lambda number, guess: GIB)

    def slow(way):
        line = tried(way, place).line
        return replace(compiles(way), roofline=replace(line, compute=2 * line.step))

    found = searched(tiny(V5E | {"plan.tries": "1"}), place, slow)
    printed = results.search_tables(found)
    rows = [line.split("│") for line in printed.splitlines() if line.count("│") == 8][1:]
    assert [row[7].strip() for row in rows] == ["compiler", *["arithmetic"] * (len(rows) - 1)]
    assert "not comparable here: of the compiled ways the compiler's rate is 0.50 times that of arithmetic" in printed


def test_the_folder_names_the_slice(tiny):
    settings = tiny({"name": "mine", "plan.topology": "v5e:4x4"})
    assert results.folder(settings).as_posix() == "runs/plan/mine-v5e-4x4"
    two = replace(settings, plan=replace(settings.plan, slices=2))
    assert results.folder(two).as_posix() == "runs/plan/mine-2xv5e-4x4"


def test_what_does_not_fit_is_not_chosen(tiny, fake, monkeypatch):
    """Llama 3 8B: the compiler needs a byte too many for the first way, and of the rest what arithmetic says."""
    place, lines = topology("v5e:2x2"), []
    monkeypatch.setattr(program, "decoder_of", lambda name: published("meta-llama/Meta-Llama-3-8B"))
    compiles, asked = fake(place, lambda number, guess: place.chip.usable_hbm_bytes + 1 if number == 1 else guess)
    given = {"plan.tries": "3", "plan.quantisations": "none", "plan.batches": "4"}
    found = searched(tiny(V5E | given), place, compiles, lines.append)
    first, *others = found.compiled
    assert [one.found.fits() for one in found.compiled] == [False, True, True]
    assert found.best in others
    # what the compiler needed more than arithmetic said is added to all others before they are asked about
    ratio = first.found.peak / first.estimated.peak
    assert ratio > 1.05
    assert all(one.estimated.peak * ratio <= found.usable for one in others)
    assert len(asked) == 3
    assert lines[2] == f"  does not fit: 15.75 GiB, by arithmetic {first.estimated.peak / GIB:.2f}"


def test_none_fits(tiny, fake):
    place = topology("v5e:2x2")
    compiles, _ = fake(place, lambda number, guess: 20 * GIB)
    found = searched(tiny(V5E | {"plan.tries": "1"}), place, compiles)
    assert found.best is None
    assert found.lacking.startswith("none of the 1 compiled fits: the smallest needs 20.00 of 15.75 GiB")


def test_too_large_for_any_mesh(tiny, monkeypatch):
    """Llama 2 70B in bfloat16: 137 GB of weights alone."""
    monkeypatch.setattr(program, "decoder_of", published)
    found = search(tiny(V5E | {"model.name": "meta-llama/Llama-2-70b-hf", "plan.quantisations": "none"}))
    assert found.best is None
    needed, missing = map(float, re.findall(r"([\d.]+) GiB (?:by arithmetic on|more)", found.lacking))
    assert needed > 137.9e9 / 4 / GIB
    assert missing == pytest.approx(needed + 0.15 * 15.75 - 15.75, abs=0.02)
    assert "the smallest slice that would hold it is v5e:4x4" in found.lacking


def test_larger_slices_of_a_kind():
    assert [one.name for one in larger_slices(topology("v5e-64"))] == ["v5e:8x16", "v5e:16x16"]
    assert next(iter(larger_slices(topology("v5e-1")))).name == "v5e:2x2"
    assert [one.chips for one in larger_slices(topology("gpu:h100:8"))][:6] == [16, 24, 32, 40, 48, 56]
    assert [one.chips for one in larger_slices(topology("gpu:h100:2"))][:5] == [4, 8, 16, 24, 32]
    cubes = [one.chips for one in larger_slices(topology("v5p-64"))]
    assert cubes[:7] == [128, 192, 256, 320, 384, 448, 512]
    assert max(cubes) <= 16 * 20 * 28


def test_the_smallest_slice_need_not_be_a_power_of_two(tiny, monkeypatch):
    """840 billion numbers with Adam in 16 bytes each: 105 GB on each of 128 chips, 70 GB on each of 192."""
    sizes = {"layers": 700, "embed": 9216, "heads": 72, "kv_heads": 8, "head_dim": 128, "mlp": 36864}
    config = replace(program.decoder_of(""), **sizes, windows=(0,) * 700, rope_index=(0,) * 700)
    monkeypatch.setattr(program, "decoder_of", lambda name: config)
    given = {"plan.topology": "v5p-64", "plan.compile": "false", "train.trainable": "full", "train.batch_size": "64"}
    found = search(tiny(given | {"model.quantisation": "none", "data.window": "512"}))
    assert found.best is None
    assert "the smallest slice that would hold it is v5p:4x4x12" in found.lacking


def test_the_front_has_no_beaten_way(tiny):
    found = search(tiny(V5E))
    best = front(found.ways)
    assert [one.estimated.peak for one in best] == sorted(one.estimated.peak for one in best)
    for one in found.ways:
        assert any(kept.estimated.peak <= one.estimated.peak and kept.rank <= one.rank for kept in best)
        assert not any(
            one.estimated.peak <= kept.estimated.peak and one.rank < kept.rank for kept in best if one not in best
        )
    assert first_of([3, 5, 4], lambda number: number % 2) == [3, 4]


def test_the_files_of_a_search(tiny, tmp_path):
    """plan.toml is read by medjax.train as it stands and makes the step that was planned."""
    settings = tiny(V5E | {"plan.search": "true"})
    found = search(settings)
    paths = results.write(found, settings, tmp_path / "plan")
    assert [path.name for path in paths] == ["plan.json", "plan.svg", "plan.toml"]
    back = load(TrainSettings, paths[-1])
    assert back == found.best.way.settings
    again = step_program(back, found.best.way.layout.config, 10, named_devices(topology("v5e:2x2")))
    assert dict(again.mesh.shape) == dict(found.best.way.layout.mesh.shape)
    head = paths[-1].read_text("utf-8").splitlines()[:6]
    argv = shlex.split(head[-1].removeprefix("# made by:  python -m medjax.plan"))
    assert not {"--mesh", "--train.accumulation"} & set(argv)  # a search refuses them
    made = load(LanguagePlanSettings, None, argv)
    check_options(made.plan, argv)
    assert replace(made, mesh=settings.mesh) == settings
    assert head[0] == f"# python -m medjax.train {paths[-1]}"
    assert head[1] == "# hardware: 1 x v5e:2x2, 4 chips"
    assert (
        head[2]
        == f"# memory:   {found.best.peak / GIB:.2f} of 15.75 GiB on each device, by arithmetic alone, not compiled"
    )
    assert "nothing was run" in head[3]
    assert head[4] == f"# changes:  batch {back.train.batch_size}, not 4"
    figures = json.loads(paths[0].read_text("utf-8"))
    assert figures["changes"] == [f"batch {back.train.batch_size}, not 4"]
    assert figures["fits"] is True
    assert figures["best"]["settings"]["mesh"]["shape"] == back.mesh.shape
    assert figures["estimated_ways"] == found.count
    assert "plan" not in tomllib.loads(paths[-1].read_text("utf-8"))


def test_a_search_with_a_compiler(tiny):
    """On eight fake devices, whose memory is not known: everything fits, ranked by operations."""
    settings = tiny({"plan.tries": "1", "plan.quantisations": "none", "plan.batches": "8"})
    lines = []
    found = search(settings, lines.append)
    assert len(found.compiled) == 1
    assert found.best.found.compiled.memory.argument == pytest.approx(found.best.estimated.arguments, rel=0.01)
    assert lines[1] == f"compiling 1 of 1: {described(found.best)}"


def test_no_batch_can_be_split(tiny):
    with pytest.raises(ValueError, match="no mesh of 8 devices can split batches of 3 rows of 384 tokens"):
        search(tiny({"plan.batches": "3", "data.window": "384", "plan.compile": "false"}))


def test_encoders_of_ecgs(tmp_path):
    """ViT-H on sixteen v5e chips; what is written is a run that medjax.train reads, on the mesh that was planned."""
    given = {"objective": "mae", "encoder.size": "H", "encoder.dtype": "bfloat16", "train.batch_size": "1024"}
    settings = load(EcgPlanSettings, overrides=given | {"plan.topology": "v5e:4x4", "plan.compile": "false"})
    found = search(settings)
    assert found.best.estimated.peak < found.usable
    assert {one.way.unit for one in found.ways} == {"records"}
    assert "records/s/chip" in results.search_tables(found)
    paths = results.write(found, settings, tmp_path)
    assert load(EcgTrainSettings, paths[-1]) == found.best.way.settings
    with pytest.raises(ValueError, match=r"batches of 3 records and an encoder of size H; change plan\.batches"):
        search(replace(settings, plan=replace(settings.plan, batches=(3,))))


def test_gpus_that_are_not_here(tiny):
    lines = []
    found = search(tiny({"plan.topology": "gpu:h100:8"}), lines.append)
    assert "this machine has 0 GPUs of that kind, expected 8" in lines[0]
    assert found.best.found is None
    assert found.usable == 60 * GIB
    settings = tiny({"plan.topology": "gpu:l40s:16", "plan.compile": "false", "data.window": "8192"})
    two = search(replace(settings, plan=replace(settings.plan, batches=(16,))))
    printed = results.search_tables(two)
    assert two.best.line.unknown  # every mesh goes over the network, of which nothing is known
    assert "no bandwidth is known of" in printed
    assert "rows of 8,192 tokens are longer than the 4,096 that the model was made for" in printed
    assert results.to_json(two, settings)["no_bandwidth_of"] == list(two.best.line.unknown)
