"""Operations and traffic against XLA's own analysis of unrolled programs and closed forms; linear in depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.plan.figures import (
    Kernel,
    arrays_with,
    donation,
    estimated_cycles,
    flops_of,
    hbm_bytes,
    host_bytes,
    kernels,
    matmul_flops,
)
from medjax.plan.hlo import parse

TOKENS, EMBED, MLP = 24, 16, 40


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile()


def stack(layers):
    return shape(layers, EMBED, MLP), shape(layers, MLP, EMBED), shape(TOKENS, EMBED)


def loss(up, down, x, *, unrolled=False):
    def layer(h, weights):
        return h + jnp.tanh(h @ weights[0]) @ weights[1], None

    return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, (up, down), unroll=len(up) if unrolled else 1)[0] ** 2)


@pytest.mark.parametrize("layers", [2, 4, 8])
def test_operations_are_linear_in_depth_and_exact(layers):
    program = compiled(jax.grad(loss, (0, 1)), *stack(layers))
    # forward 2 products, again forward 1 (nothing needs the second), backward 4: all of the same size
    product = 2 * TOKENS * EMBED * MLP
    assert matmul_flops(parse(program.as_text())) == layers * 7 * product


@pytest.mark.parametrize("layers", [2, 4])
def test_operations_are_those_of_xla_for_the_unrolled_program(layers):
    def forward(up, down, x, unrolled):
        def layer(h, weights):
            return (h @ weights[0]) @ weights[1], None

        return jax.lax.scan(layer, x, (up, down), unroll=layers if unrolled else 1)[0]

    scanned = compiled(lambda *a: forward(*a, unrolled=False), *stack(layers))
    unrolled = compiled(lambda *a: forward(*a, unrolled=True), *stack(layers))
    counted = unrolled.cost_analysis()["flops"]
    assert matmul_flops(parse(scanned.as_text())) == matmul_flops(parse(unrolled.as_text())) == counted
    # XLA itself sees one layer of the scanned program, and a few operations of its counter
    assert scanned.cost_analysis()["flops"] < 1.1 * counted / layers


def test_traffic_is_linear_in_depth():
    two, four, eight = (
        hbm_bytes(parse(compiled(jax.grad(loss, (0, 1)), *stack(layers)).as_text())) for layers in (2, 4, 8)
    )
    # a stack of weights is sliced: were it read whole in every turn, the growth would be quadratic
    assert eight - four == 2 * (four - two) > 0


def test_traffic_is_near_that_of_xla_for_one_layer():
    program = compiled(lambda a, b: jnp.tanh(a @ b), shape(256, 128), shape(128, 512))
    moved = hbm_bytes(parse(program.as_text()))
    # both operands, the product written and read again, the result: unless tanh was fused into the product
    once, twice = 4 * (256 * 128 + 128 * 512 + 256 * 512), 4 * (256 * 128 + 128 * 512 + 3 * 256 * 512)
    assert moved in (once, twice)
    assert moved == program.cost_analysis()["bytes accessed"]


@pytest.mark.parametrize(
    ("lhs", "rhs", "options"),
    [
        ((2, 30, 12), (5, 12, 7), {"window_strides": (1,), "padding": "SAME"}),
        ((2, 30, 12), (4, 12, 7), {"window_strides": (3,), "padding": "VALID"}),
        ((2, 30, 12), (3, 12, 7), {"window_strides": (1,), "padding": [(4, 1)], "rhs_dilation": (2,)}),
        ((2, 30, 12), (3, 12, 7), {"window_strides": (1,), "padding": [(2, 2)], "lhs_dilation": (3,)}),
        ((2, 9, 11, 6), (3, 2, 6, 8), {"window_strides": (2, 1), "padding": "SAME"}),
        ((2, 30, 12), (5, 4, 6), {"window_strides": (1,), "padding": "SAME", "feature_group_count": 3}),
    ],
)
def test_convolutions_count_where_they_meet_their_input(lhs, rhs, options):
    spatial = "DHW"[3 - (len(lhs) - 2) :]
    names = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=names, **options)

    # by hand: ones in every place, one input at a time; each output is the number of products that it sums
    ones = convolve(jnp.ones(lhs), jnp.ones(rhs))
    program = compiled(convolve, shape(*lhs), shape(*rhs))
    assert matmul_flops(parse(program.as_text())) == 2 * float(ones.sum())


# As TPU prints: a batched product as a convolution whose window meets each batch alone, arrays in VMEM (S(1)), copies
# between the memories, cycles of the schedule, marks and kernels.
TPU = """HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }, \
buffer_donor={ (1, {}) }, num_partitions=1

%slice_fusion (p.0: bf16[6,128,256], p.1: s32[]) -> bf16[128,256] {
  %p.0 = bf16[6,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,128,256}
  ROOT %flat = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} bitcast(%layer)
}

%update_fusion (p.2: bf16[6,128,256], p.3: s32[], p.4: bf16[128,256]) -> bf16[6,128,256] {
  %p.2 = bf16[6,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.3 = s32[] parameter(1)
  %p.4 = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %null = s32[] constant(0)
  %piece = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} bitcast(%p.4)
  ROOT %updated = bf16[6,128,256]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%p.2, %piece, %p.3, %null, %null)
}

ENTRY %main (a: bf16[6,128,256], b: bf16[4,32,64], c: f32[8,1], d: s32[]) -> (bf16[6,128,256], f32[8,1]) {
  %a = bf16[6,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[4,32,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %c = f32[8,1]{1,0:T(8,128)} parameter(2)
  %d = s32[] parameter(3)
  %w = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} fusion(%a, %d), kind=kLoop, calls=%slice_fusion, \
backend_config={"window_config":{"estimated_cycles":"1859"}}
  %scores = f32[4,32,32]{2,1,0:T(8,128)S(1)} convolution(%b, %b), window={size=4 stride=3 pad=0_0 lhs_dilate=4}, \
dim_labels=0bf_0oi->0bf, backend_config={"window_config":{"estimated_cycles":"9223372036854775807"}}
  %buffer = bf16[6,128,256]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %splash_mha_fwd.3 = bf16[4,32,64]{2,1,0:T(8,128)(2,1)} custom-call(%b), custom_call_target="tpu_custom_call"
  %splash_mha_fwd.4 = bf16[4,32,64]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%b), custom_call_target="tpu_custom_call"
  %copy-start.1 = (f32[8,1]{1,0:T(8,128)S(1)}, f32[8,1]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%c)
  %copy-done.1 = f32[8,1]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %stored = bf16[6,128,256]{2,1,0:T(8,128)(2,1)} fusion(%a, %d, %w), kind=kLoop, calls=%update_fusion, \
backend_config={"window_config":{"estimated_cycles":"141"}}
  ROOT %out = (bf16[6,128,256]{2,1,0}, f32[8,1]{1,0}) tuple(%stored, %copy-done.1)
}
"""


def test_a_batched_product_that_tpu_spells_as_a_convolution():
    module = parse(TPU)
    main = module.computations["main"]
    # four products of 32 x 64 with 64 x 32, not sixteen
    assert flops_of(main, main.instructions["scores"]) == 4 * 2 * 32 * 64 * 32 == matmul_flops(module)


def test_axes_of_a_window_count_by_their_number():
    """A gradient as TPU spells it where parts are sent on as they are made: rows axis 1 lies before tokens' axis 0.

    Each of the two outputs along axis 0 meets one of the two kernels, rows of axis 1 are summed.
    """
    text = """HloModule jit_step

ENTRY %main (a: bf16[2,2048,64,1], b: bf16[2,2048,2,32]) -> bf16[64,2,32,1] {
  %a = bf16[2,2048,64,1]{1,2,0,3} parameter(0)
  %b = bf16[2,2048,2,32]{3,1,0,2} parameter(1)
  ROOT %out = bf16[64,2,32,1]{2,0,3,1} convolution(%a, %b), window={size=2x2 pad=1_1x0_0 rhs_reversal=1x0}, \
dim_labels=1fb0_1i0o->b0f1
}
"""
    assert matmul_flops(parse(text)) == 2 * 64 * (2 * 32) * (2 * 2048)


def test_a_product_that_gpu_hands_to_cublas():
    text = """HloModule jit_step

ENTRY %main (a: bf16[32,64], b: bf16[64,48]) -> bf16[32,48] {
  %a = bf16[32,64]{1,0} parameter(0)
  %b = bf16[64,48]{1,0} parameter(1)
  %gemm.1 = (bf16[32,48]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  ROOT %out = bf16[32,48]{1,0} get-tuple-element(%gemm.1), index=0
}
"""
    module = parse(text)
    assert matmul_flops(module) == 2 * 32 * 64 * 48
    assert [(one.name, one.target) for one in kernels(module)] == [("gemm", "__cublas$lt$matmul")]


def test_only_what_lies_in_main_memory_is_traffic():
    layer = 128 * 256 * 2  # one of six
    kernel = 4 * 32 * 128 * 2  # written once to main memory, with its 64 columns padded to 128; once to VMEM
    column = 8 * 128 * 4  # read, with its only column padded to 128
    index = 2 * 4  # the number of the layer, for the slice and for the update
    assert hbm_bytes(parse(TPU)) == 2 * layer + kernel + column + index


# As TPU prints a product with one layer of stacked weights: the slice is in a fusion inside a fusion, behind a copy of
# the whole stack that exists by name alone; and new rows scattered into an array in place.
NESTED = """HloModule jit_step, num_partitions=1

%retiled (s.0: s8[6,128,256]) -> s8[6,128,256] {
  %s.0 = s8[6,128,256]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %again = s8[6,128,256]{2,1,0:T(8,128)(4,1)} copy(%s.0)
}

%kernel (k.0: s8[6,128,256], k.1: s32[]) -> bf16[128,256] {
  %k.0 = s8[6,128,256]{2,1,0:T(32,128)(4,1)} parameter(0)
  %stack = s8[6,128,256]{2,1,0:T(8,128)(4,1)} fusion(%k.0), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, \
calls=%retiled
  %k.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = s8[1,128,256]{2,1,0:T(8,128)(4,1)} dynamic-slice(%stack, %k.1, %zero, %zero), dynamic_slice_sizes={1,128,256}
  %wide = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} convert(%layer)
  ROOT %flat = bf16[128,256]{1,0:T(8,128)(2,1)} bitcast(%wide)
}

%product (x.0: bf16[16,128], x.1: s8[6,128,256], x.2: s32[]) -> bf16[16,256] {
  %x.0 = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %x.1 = s8[6,128,256]{2,1,0:T(32,128)(4,1)} parameter(1)
  %x.2 = s32[] parameter(2)
  %w = bf16[128,256]{1,0:T(8,128)(2,1)} fusion(%x.1, %x.2), kind=kLoop, calls=%kernel
  ROOT %y = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} convolution(%x.0, %w), dim_labels=bf_io->bf
}

%rows (r.0: bf16[512,256], r.1: s32[16,1], r.2: bf16[16,256]) -> bf16[512,256] {
  %r.0 = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(0)
  %r.1 = s32[16,1]{1,0:T(8,128)S(1)} parameter(1)
  %r.2 = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  ROOT %put = bf16[512,256]{1,0:T(8,128)(2,1)} scatter(%r.0, %r.1, %r.2), update_window_dims={1}, \
inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%second
}

%second (a.0: bf16[], a.1: bf16[]) -> bf16[] {
  %a.0 = bf16[] parameter(0)
  ROOT %a.1 = bf16[] parameter(1)
}

ENTRY %main (a: bf16[16,128], b: s8[6,128,256], c: s32[], d: bf16[512,256], e: s32[16,1]) -> bf16[512,256] {
  %a = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = s8[6,128,256]{2,1,0:T(32,128)(4,1)} parameter(1)
  %c = s32[]{:S(6)} parameter(2)
  %d = bf16[512,256]{1,0:T(8,128)(2,1)} parameter(3)
  %e = s32[16,1]{1,0:T(8,128)S(1)} parameter(4)
  %new = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} fusion(%a, %b, %c), kind=kOutput, calls=%product
  ROOT %out = bf16[512,256]{1,0:T(8,128)(2,1)} fusion(%d, %e, %new), kind=kCustom, calls=%rows
}
"""


# As TPU prints activations of six layers that a loop sends to the host (memory 5), one of which is read back.
OFFLOAD = """HloModule jit_step, num_partitions=1

%send (s.0: (s32[], bf16[64,200], bf16[6,64,200])) -> (s32[], bf16[64,200], bf16[6,64,200]) {
  %s.0 = (s32[]{:T(128)}, bf16[64,200]{1,0:T(8,128)(2,1)}, bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%s.0), index=0
  %one = s32[]{:T(128)S(6)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %x = bf16[64,200]{1,0:T(8,128)(2,1)} get-tuple-element(%s.0), index=1
  %host = bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)} get-tuple-element(%s.0), index=2
  %piece = bf16[1,64,200]{2,1,0:T(8,128)(2,1)} bitcast(%x)
  %zero = s32[]{:T(128)S(6)} constant(0)
  %begin = ((bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}, bf16[1,64,200]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)S(6)}, \
s32[]{:T(128)S(6)}, s32[]{:T(128)S(6)}), bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}, u32[]{:S(2)}) \
dynamic-update-slice-start(%host, %piece, %i, %zero, %zero)
  %sent = bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)} dynamic-update-slice-done(%begin)
  ROOT %out = (s32[]{:T(128)S(6)}, bf16[64,200]{1,0:T(8,128)(2,1)}, bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}) \
tuple(%next, %x, %sent)
}

%more (m.0: (s32[], bf16[64,200], bf16[6,64,200])) -> pred[] {
  %m.0 = (s32[]{:T(128)}, bf16[64,200]{1,0:T(8,128)(2,1)}, bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}) parameter(0)
  %j = s32[]{:T(128)S(6)} get-tuple-element(%m.0), index=0
  %end = s32[]{:T(128)S(6)} constant(6)
  ROOT %go = pred[]{:T(1024)S(6)} compare(%j, %end), direction=LT
}

ENTRY %main (a: bf16[64,200]) -> bf16[1,64,200] {
  %a = bf16[64,200]{1,0:T(8,128)(2,1)} parameter(0)
  %null = s32[]{:T(128)S(6)} constant(0)
  %room = bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[]{:T(128)S(6)}, bf16[64,200]{1,0:T(8,128)(2,1)}, bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}) \
tuple(%null, %a, %room)
  %loop = (s32[]{:T(128)S(6)}, bf16[64,200]{1,0:T(8,128)(2,1)}, bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}) \
while(%start), condition=%more, body=%send
  %there = bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)} get-tuple-element(%loop), index=2
  %fetch = ((bf16[6,64,200]{2,1,0:T(8,128)(2,1)S(5)}, s32[]{:T(128)S(6)}, s32[]{:T(128)S(6)}, s32[]{:T(128)S(6)}), \
bf16[1,64,200]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) dynamic-slice-start(%there, %null, %null, %null), \
dynamic_slice_sizes={1,64,200}
  %back = bf16[1,64,200]{2,1,0:T(8,128)(2,1)} dynamic-slice-done(%fetch)
  %keep = (bf16[1,64,200]{2,1,0:T(8,128)(2,1)S(5)}, bf16[1,64,200]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%back)
  %kept = bf16[1,64,200]{2,1,0:T(8,128)(2,1)S(5)} copy-done(%keep)
  ROOT %result = bf16[1,64,200]{2,1,0:T(8,128)(2,1)} copy(%back)
}
"""


def test_what_passes_between_chip_and_host():
    """Six layers there, one back, and one copied there whole; a copy on the chip is none of it."""
    module, piece = parse(OFFLOAD), 64 * 256 * 2  # 200 columns are padded to 256
    assert host_bytes(module) == (6 + 1 + 1) * piece
    assert hbm_bytes(module) == (6 + 1 + 1 + 2) * piece  # each once on the chip's side, the last copy read and written
    assert host_bytes(parse(TPU)) == 0


def test_a_slice_inside_fusions_and_a_scatter_in_place():
    assert hbm_bytes(parse(NESTED)) == 128 * 256 + 16 * 256 * 2  # one layer's codes read, sixteen rows written


def test_kernels_cycles_and_donation():
    module = parse(TPU)
    assert kernels(module) == [Kernel("splash_mha_fwd", "tpu_custom_call", 2)]
    assert estimated_cycles(module) == 2000  # and of one fusion the compiler has no estimate
    found = donation(module)
    assert (found.aliased, found.unused) == ((0, 2), (1,))
    assert found.bytes == 6 * 128 * 256 * 2 + 8 * 4


def test_donated_and_kept_inputs_of_a_real_program():
    program = compiled(lambda a, b, c: (a + b, c * 2), shape(8, 4), shape(8, 4), shape(3), donate_argnums=(0, 2))
    found = donation(parse(program.as_text()))
    assert (found.aliased, found.unused, found.bytes) == ((0, 2), (), 8 * 4 * 4 + 3 * 4)
    assert donation(parse(compiled(lambda a: a + 1, shape(8)).as_text())).aliased == ()


def test_full_logits_show_and_chunked_ones_do_not():
    vocab, tokens = 320, 64

    def full(h, table, targets):
        logits = jnp.tanh(h @ table)
        return jnp.sum(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[:, None], -1)[:, 0])

    def chunked(h, table, targets):
        parts = (h.reshape(8, -1, h.shape[-1]), targets.reshape(8, -1))
        return jnp.sum(jax.lax.map(lambda part: full(part[0], table, part[1]), parts))

    arguments = (shape(tokens, EMBED), shape(EMBED, vocab), shape(tokens, dtype=jnp.int32))
    sizes = []
    for function in (full, chunked):
        found = arrays_with(parse(compiled(function, *arguments).as_text()), vocab)
        assert np.all(np.diff([array.bytes for array in found]) <= 0)
        sizes.append(max(array.elements for array in found if array.dims[0] != EMBED))
    assert sizes == [tokens * vocab, tokens // 8 * vocab]


def test_arrays_of_some_instructions_alone():
    program = compiled(lambda a, b: jnp.tanh(a) @ b, shape(8, 16), shape(16, 48))
    module = parse(program.as_text())
    assert {array.dims for array in arrays_with(module, 48)} == {(16, 48), (8, 48)}
    assert [array.dims for array in arrays_with(module, 48, of=("parameter",))] == [(16, 48)]
