"""Scaling on paper against the book's numbers, closed forms, the planner's own arithmetic, and published rates."""

import re

import pytest
import scaling_arithmetic as paper
import scaling_paper
import scaling_published
from jax.sharding import AbstractMesh
from scaling_arithmetic import FULL, LORA, LORA_BF16, LORA_INT8, LORA_NF4

from medjax.parallel.chips import chip
from medjax.parallel.mesh import AXES
from medjax.parallel.sharding import PRESETS
from medjax.parallel.topology import topology
from medjax.plan.estimate import work
from medjax.plan.layout import Layout
from medjax.train.flops import lora_params

N_8B, N_70B = 6_979_321_856, 68_451_041_280  # weights of the layers' projections
ALL_8B = 8_030_261_248
V5P = chip("v5p")


@pytest.fixture(scope="module")
def llama3():
    return paper.model("8B")


def planned(config, mesh: dict[str, int], trains: str, trained: int) -> Layout:
    """A step in bfloat16 with nothing computed again, as the planner sees it."""
    return Layout(
        config=config,
        mesh=AbstractMesh(tuple(mesh[axis] for axis in AXES), AXES),
        rules=PRESETS["default"],
        rows=16,
        window=2048,
        accumulation=1,
        remat="dots",
        width=2,
        quantisation=None,
        backend="splash",
        context="heads",
        lora=None if trains == "full" else LORA,
        trains=trains,
        trains_table=False,
        trained=trained,
        optimizer=0,
        frozen=0,
        batch=0,
        on_tpu=True,
    )


def test_fsdp_on_v5p_as_in_the_book():
    """Part 5 of "How to Scale Your Model": 6 N operations, 6 N bytes in bfloat16: 2550 tokens a chip over the axes."""
    for axes, tokens in ((1, 2550), (2, 1275), (3, 850)):
        found = paper.tokens_to_hide(6 * N_8B, 6 * N_8B, V5P.bf16_flops, 2 * axes * V5P.ici_bytes_per_s)
        assert found == pytest.approx(tokens)


def test_tensor_parallelism_on_v5p_as_in_the_book():
    """Part 5: an MLP of two matrices, forward, one sum: n < F / 2550 an axis."""
    embed, mlp = 8192, 28_672
    found = paper.tensor_ways(2 * 2 * embed * mlp, 1, embed, V5P.bf16_flops, 2 * V5P.ici_bytes_per_s)
    assert found - 1 == pytest.approx(mlp / 2550)


def test_between_slices_as_in_the_book(llama3):
    """Part 5: bfloat16 gradients, 4 N operations of the backward pass, many slices: peak / bandwidth tokens."""
    found = paper.tokens_to_hide(4 * N_8B, 2 * 2 * N_8B, V5P.bf16_flops, V5P.dcn_bytes_per_s)
    assert found == pytest.approx(4.59e14 / 6.25e9)
    # ours: float32 gradients of all weights, two slices, forward too
    expected = 4 * ALL_8B / 6.25e9 * 4.59e14 / (6 * N_8B)
    assert paper.dcn_tokens(llama3, FULL, V5P) == pytest.approx(expected)


def test_links_of_slices():
    assert paper.link_bandwidth(topology("v5e-16")) == 2 * 4.5e10  # 4x4: no rings, two axes
    assert paper.link_bandwidth(topology("v5e-256")) == 4 * 4.5e10
    assert paper.link_bandwidth(topology("v5p-16")) == 3 * 9e10
    assert paper.link_bandwidth(topology("v5p-128")) == 6 * 9e10
    assert paper.link_bandwidth(topology("gpu:h100:8")) == 4.5e11
    assert paper.link_bandwidth(topology("gpu:h100:16")) == 5e10


def test_fsdp_sends_what_the_planner_counts(llama3):
    mesh = {"data": 1, "fsdp": 16, "tensor": 1, "sequence": 1}
    full = work(planned(llama3, mesh, "full", 4 * N_8B // 16)).sent["fsdp"]
    assert 15 / 16 * paper.gathered_bytes(llama3, FULL) == pytest.approx(full)
    adapters = lora_params(llama3, LORA)
    lora = work(planned(llama3, mesh, "lora", 4 * adapters // 16)).sent["fsdp"]
    assert 15 / 16 * paper.gathered_bytes(llama3, LORA_BF16) == pytest.approx(lora)


def test_tensor_axis_is_where_the_planner_has_sums_as_long_as_products(llama3):
    mesh = {"data": 1, "fsdp": 1, "tensor": 4, "sequence": 1}
    tokens = 16 * 2048
    products = paper.kernel_flops(llama3, LORA_BF16) * tokens / 4
    sums = work(planned(llama3, mesh, "lora", 0)).sent["tensor"]
    bandwidth = sums / products * V5P.bf16_flops  # at which both take equally long
    assert paper.tensor_axis(llama3, LORA_BF16, V5P, bandwidth) == pytest.approx(4)


def test_memory_that_a_step_holds(llama3):
    adapters = lora_params(llama3, LORA)
    assert paper.parameters(llama3) == ALL_8B
    assert paper.held_bytes(llama3, FULL) == 16 * ALL_8B
    assert paper.held_bytes(llama3, LORA_BF16) == 2 * ALL_8B + 16 * adapters
    rest = 2 * (ALL_8B - N_8B) + 16 * adapters
    assert paper.held_bytes(llama3, LORA_NF4) == pytest.approx(N_8B * 4.127 / 8 + rest, rel=1e-5)
    assert paper.held_bytes(llama3, LORA_INT8) == pytest.approx(N_8B + rest, rel=1e-3)  # and a scale for each output
    assert paper.base_bytes(llama3, None, kernels_only=True) == 2 * N_8B


def test_smallest_slices():
    gib = 2**30
    assert paper.smallest_slice(chip("v5e"), 12.7 * gib) == 1
    assert paper.smallest_slice(chip("v5e"), 12.9 * gib) == 4  # there is no v5e-2
    assert paper.smallest_slice(chip("v5p"), 16 * 68_976_648_192) == 16  # 1,028 GiB in 0.8 x 96 each
    assert paper.smallest_slice(chip("h100"), 63.9 * gib) == 1
    assert paper.smallest_slice(chip("h100"), 64.1 * gib) == 2
    assert paper.smallest_slice(chip("v5e"), 1e15) is None


@pytest.mark.parametrize("again", [False, True])
def test_operations_of_a_token(llama3, again):
    length, adapters, table = 2048, lora_params(llama3, LORA), 128_256 * 4096
    attention = 4 * 32 * 32 * 128 * (length + 1) / 2  # forward
    full = 6 * N_8B + 6 * table + 3 * attention + (2 * N_8B + attention if again else 0)
    lora = 4 * N_8B + 6 * adapters + 4 * table + 3 * attention
    lora += 2 * (N_8B + adapters) + attention if again else 0
    assert paper.step_flops(llama3, FULL, length, again=again) == pytest.approx(full)
    assert paper.step_flops(llama3, LORA_BF16, length, again=again) == pytest.approx(lora)
    if not again:
        assert paper.attention_share(llama3, LORA_BF16, length) == pytest.approx(3 * attention / lora)


def test_kept_activations_of_8b(llama3):
    """Bytes a token and layer: the carry; attention's output and a float32 a head; every projection's output."""
    carry, attention = 2 * 4096, 2 * 4096 + 4 * 32
    dots = 2 * (4096 + 2 * 1024 + 4096 + 2 * 14_336 + 4096)
    assert paper.kept_bytes(llama3, "full") == 32 * carry
    assert paper.kept_bytes(llama3, "attention") == 32 * (carry + attention)
    assert paper.kept_bytes(llama3, "dots") == 32 * (carry + attention + dots)


def test_recordings():
    def block(layers, embed, tokens):
        return layers * (tokens * 2 * 12 * embed**2 + 4 * embed * tokens**2)

    flops = 3 * (block(32, 1280, 60) + block(8, 512, 240))
    assert paper.record_flops("H") == flops
    assert paper.records_per_s("H", topology("v5e-16"), 0.4) == pytest.approx(16 * 197e12 * 0.4 / flops)
    assert paper.record_bytes(2) == 120_000
    assert paper.days(8.64e4 * 8 * 989e12, topology("gpu:h100:8"), 0.5) == pytest.approx(2)


def test_rates_of_others_give_the_utilisation_that_they_state():
    """What they state and what we count from their rates: an eighth apart where they count the whole square."""
    stated = {"402": 402, "316": 316, "285": 285, "419.5": 419.5, "443.4": 443.4}
    for one in (*scaling_published.ADAPTED, *scaling_published.TRAINED):
        found = re.search(r"([\d.]+) TFLOP/s$", one.stated)
        if found and one.chip:
            whole_square = "whole square" in one.note
            ratio = one.flops / 1e12 / stated[found[1]]
            assert (0.88 < ratio < 0.94) if whole_square else (1.0 < ratio < 1.05), one.who
    llama2 = next(one for one in scaling_published.TRAINED if "65.4 %" in one.stated)
    assert llama2.mfu == pytest.approx(0.654, rel=0.02)


def test_every_published_figure_names_its_document_and_fits_its_chip():
    for *_, figures in scaling_published._PARTS:
        for one in figures:
            assert re.search(r"@[0-9a-f]{7}, |arXiv \d{4}\.\d{5}|issues \d+", one.source), one.who
            assert not one.chip or 0.05 < one.mfu < 0.75, one.who


def test_the_page_shows_the_numbers_and_says_that_nothing_was_run():
    text = scaling_paper.sections()
    tables = re.findall(r"(?:^\|.*\n)+\n(.*)", text, re.M)
    assert len(tables) == 11
    assert set(tables) == {scaling_paper.NOTE}
    assert "| v5p | 2,550 | 1,280 | 850 |" in text
    assert "| v5e-16 (4x4) | 2,740 | 2,080 | 1,090 | 606 | 569 |" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_the_figure_in_the_docs_is_the_one_that_is_drawn():
    drawn = (paper.ROOT / "docs" / scaling_paper.FIGURE).read_text("utf-8")
    assert drawn == scaling_paper.figure()
    assert "v5e-16: from 2,076 tokens, NF4 606" in drawn
