"""Collectives of programs for 8 fake devices against bytes worked out by hand, and of snippets as TPU prints them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from medjax.plan.collectives import by_kind, collectives, groups_of
from medjax.plan.hlo import parse

SIZES = {"data": 2, "fsdp": 4, "tensor": 1}


def mesh() -> Mesh:
    return Mesh(np.asarray(jax.devices()[:8]).reshape(2, 4, 1), tuple(SIZES), axis_types=(AxisType.Auto,) * 3)


def mapped(function, inputs, outputs, *shapes):
    """Collectives of a function under shard_map; float32 arrays of the given global shapes."""
    inside = jax.shard_map(function, mesh=mesh(), in_specs=inputs, out_specs=outputs, check_vma=False)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(), spec))
        for shape, spec in zip(shapes, inputs, strict=True)
    ]
    module = parse(jax.jit(inside).lower(*arguments).compile().as_text())
    return collectives(module, SIZES)


@pytest.mark.parametrize(
    ("function", "spec", "out", "expected"),
    [
        # an array of 64 x 16 float32 is 4096 bytes; a quarter lies on each chip along fsdp
        (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), P("fsdp"), P(), ("all-gather", ("fsdp",), 4, 4096, 3072)),
        (lambda x: jax.lax.psum(x, "fsdp"), P(), P(), ("all-reduce", ("fsdp",), 4, 4096, 6144)),
        (lambda x: jax.lax.psum(x, "data"), P(), P(), ("all-reduce", ("data",), 2, 4096, 4096)),
        (lambda x: jax.lax.psum(x, ("data", "fsdp")), P(), P(), ("all-reduce", ("data", "fsdp"), 8, 4096, 7168)),
        (
            lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True),
            P(),
            P("fsdp"),
            ("reduce-scatter", ("fsdp",), 4, 4096, 3072),
        ),
        (
            lambda x: jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True),
            P("fsdp"),
            P("fsdp"),
            ("all-to-all", ("fsdp",), 4, 1024, 768),
        ),
        (
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
            P("fsdp"),
            P("fsdp"),
            ("collective-permute", ("fsdp",), 2, 1024, 1024),
        ),
    ],
)
def test_bytes_and_axes_of_each_kind(function, spec, out, expected):
    found = [one for one in mapped(function, (spec,), out, (64, 16)) if one.moved_bytes]
    assert [(one.kind, one.axes, one.group, one.payload_bytes, one.moved_bytes) for one in found] == [expected]
    assert [(one.times, one.network) for one in found] == [(1, False)]


def test_a_loop_multiplies_and_the_largest_gathered_array_is_known():
    def scanned(stack):
        def layer(carried, weight):
            return carried @ jax.lax.all_gather(weight, "fsdp", tiled=True), None

        return jax.lax.scan(layer, jnp.ones((8, 16), jnp.float32), stack)[0]

    found = mapped(scanned, (P(None, "fsdp"),), P(), (6, 16, 16))
    gathers = [one for one in found if one.kind == "all-gather"]
    assert [(one.times, one.payload_bytes) for one in gathers] == [(6, 1024)]
    assert gathers[0].step_bytes == 6 * 1024 * 3 / 4
    # the whole stack, 6144 bytes, is nowhere gathered at once; one layer is
    assert max(one.largest_array_bytes for one in gathers) == 1024
    assert by_kind(found)["all-gather", ("fsdp",)] == 4608


def test_gathering_the_whole_stack_before_the_loop_shows():
    def all_first(stack):
        whole = jax.lax.all_gather(stack, "fsdp", axis=1, tiled=True)
        return jax.lax.scan(lambda carried, weight: (carried @ weight, None), jnp.ones((8, 16)), whole)[0]

    found = mapped(all_first, (P(None, "fsdp"),), P(), (6, 16, 16))
    assert max(one.largest_array_bytes for one in found if one.kind == "all-gather") == 6144


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{{0, 2}, {1, 3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("[1,4]<=[4]", [[0, 1, 2, 3]]),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [[0, 2], [1, 3]]),
        ("mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", [[0, 1], [2, 3]]),
        ("mesh['x'=2,'y'=1,'z'=2] {'x','z'}", [[0, 1, 2, 3]]),
        ("mesh['x'=4] {'x':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", [[0, 2], [1, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("", [[0, 1, 2, 3]]),
    ],
)
def test_groups_in_every_spelling(text, expected):
    assert groups_of(text, 4).tolist() == expected


@pytest.mark.parametrize("text", ["{{0,1},{2}}", "tiles(2,2)"])
def test_groups_in_another_spelling_are_refused(text):
    with pytest.raises(ValueError, match=r"replica_groups: got .* expected equal groups"):
        groups_of(text, 4)


# As the TPU compiler prints it, shortened: a gather begun in one fusion and ended in another while a product runs in a
# third that mentions it too, a reduce-scatter written as a fusion, a gather that waits, a permutation within a loop.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%begin (p.0: bf16[8,64]) -> (bf16[8,64], bf16[16,64], u32[]) {
  %p.0 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[16,64]{1,0:T(8,128)(2,1)} all-gather(%p.0), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), \
dimensions={0}, use_global_device_ids=true, frontend_attributes={chain_id="1"}, metadata={op_name="jit(step)/mlp"}
  ROOT %mark.1 = (bf16[8,64]{1,0}, bf16[16,64]{1,0}, u32[]) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%between (p.1: bf16[8,64], p.2: bf16[64,64]) -> bf16[8,64] {
  %p.1 = bf16[8,64]{1,0} parameter(0)
  %p.2 = bf16[64,64]{1,0} parameter(1)
  %all-gather.2 = bf16[16,64]{1,0} all-gather(%p.1), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  ROOT %product = bf16[8,64]{1,0} dot(%p.1, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%end (p.3: bf16[8,64], p.4: bf16[16,64]) -> bf16[16,64] {
  %p.3 = bf16[8,64]{1,0} parameter(0)
  %p.4 = bf16[16,64]{1,0} parameter(1)
  %all-gather.3 = bf16[16,64]{1,0} all-gather(%p.3), channel_id=7, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  ROOT %mark.2 = bf16[16,64]{1,0} custom-call(%p.3, %p.4, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p.5: bf16[16,64]) -> bf16[8,64] {
  %p.5 = bf16[16,64]{1,0} parameter(0)
  %all-reduce.1 = bf16[16,64]{1,0} all-reduce(%p.5), channel_id=8, replica_groups={{0,1},{2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %part = bf16[8,64]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={8,64}
}

%body (carried: (s32[], bf16[8,64], bf16[64,64])) -> (s32[], bf16[8,64], bf16[64,64]) {
  %carried = (s32[], bf16[8,64]{1,0}, bf16[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %h = bf16[8,64]{1,0} get-tuple-element(%carried), index=1
  %w = bf16[64,64]{1,0} get-tuple-element(%carried), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %started = (bf16[8,64]{1,0}, bf16[16,64]{1,0}, u32[]) fusion(%h), kind=kCustom, calls=%begin
  %meanwhile = bf16[8,64]{1,0} fusion(%h, %w), kind=kOutput, calls=%between
  %piece = bf16[8,64]{1,0} get-tuple-element(%started), index=0
  %whole = bf16[16,64]{1,0} get-tuple-element(%started), index=1
  %gathered = bf16[16,64]{1,0} fusion(%piece, %whole), kind=kCustom, calls=%end
  %scattered = bf16[8,64]{1,0} fusion(%gathered), kind=kCustom, calls=%all-reduce-scatter.1, \
metadata={op_name="jit(step)/grads"}
  %turn = (bf16[8,64]{1,0}, bf16[8,64]{1,0}, u32[], u32[]) collective-permute-start(%scattered), channel_id=9, \
source_target_pairs={{0,0},{1,2},{2,1},{3,3}}
  %turned = bf16[8,64]{1,0} collective-permute-done(%turn)
  %waiting = bf16[16,64]{1,0} all-gather(%turned), channel_id=10, replica_groups=mesh['axis_0'=2,'axis_1'=2] \
{'axis_1'}, dimensions={0}, frontend_attributes={async_collective_name="all-gather-start.4"}
  ROOT %tuple.1 = (s32[], bf16[8,64]{1,0}, bf16[64,64]{1,0}) tuple(%next, %turned, %w)
}

%condition (before: (s32[], bf16[8,64], bf16[64,64])) -> pred[] {
  %before = (s32[], bf16[8,64]{1,0}, bf16[64,64]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%before), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}

ENTRY %main (a: bf16[8,64], b: bf16[64,64]) -> bf16[8,64] {
  %a = bf16[8,64]{1,0} parameter(0)
  %b = bf16[64,64]{1,0} parameter(1)
  %first = s32[] constant(0)
  %tuple.2 = (s32[], bf16[8,64]{1,0}, bf16[64,64]{1,0}) tuple(%first, %a, %b)
  %loop = (s32[], bf16[8,64]{1,0}, bf16[64,64]{1,0}) while(%tuple.2), condition=%condition, body=%body
  ROOT %out = bf16[8,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_asynchronous_gathers_of_tpu_count_once_and_fused_scatters_are_scatters():
    found = collectives(parse(TPU), {"fsdp": 2, "tensor": 2})
    seen = [(one.kind, one.axes, one.payload_bytes, one.moved_bytes, one.times) for one in found]
    assert seen == [
        ("all-gather", ("fsdp",), 2048, 1024, 5),
        ("reduce-scatter", ("tensor",), 2048, 1024, 5),
        ("collective-permute", ("fsdp", "tensor"), 1024, 1024, 5),
        ("all-gather", ("tensor",), 2048, 1024, 5),
    ]
    assert [one.largest_array_bytes for one in found] == [2048, 1024, 1024, 2048]
    assert [one.op_name for one in found] == ["jit(step)/mlp", "jit(step)/grads", "", ""]


# As GPU programs spell asynchronous ones: a start names operand and result, a wrapped computation holds the collective.
STARTED = """HloModule jit_step, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%wrapped (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  ROOT %scatter = f32[16]{0} reduce-scatter(%p), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[16]) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  %gather = (f32[16]{0}, f32[64]{0}) all-gather-start(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %gathered = f32[64]{0} all-gather-done(%gather)
  %reduce = f32[64]{0} all-reduce-start(%gathered), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%add
  %reduced = f32[64]{0} all-reduce-done(%reduce)
  %begun = ((f32[64]{0}), f32[16]{0}) async-start(%reduced), calls=%wrapped
  ROOT %ended = f32[16]{0} async-done(%begun)
}
"""


def test_starts_and_wrapped_collectives_count_once():
    found = collectives(parse(STARTED), {"data": 2, "fsdp": 2})
    seen = [(one.kind, one.axes, one.payload_bytes, one.moved_bytes, one.largest_array_bytes) for one in found]
    assert seen == [
        ("reduce-scatter", ("data", "fsdp"), 256, 192, 64),
        ("all-gather", ("data", "fsdp"), 256, 192, 256),
        ("all-reduce", ("fsdp",), 256, 256, 256),
    ]
    assert all(one.times == 1 for one in found)


# Between two slices of two chips: partition ids count within a slice, the host does the rest.
SLICES = """HloModule jit_step, num_partitions=2

ENTRY %main (a: f32[64]) -> f32[64] {
  %a = f32[64]{0} parameter(0)
  %token.1 = token[] after-all()
  %send.1 = (f32[64]{0}, u32[], token[]) send(%a, %token.1), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.8_0",_xla_megascale_target="{1,2}x{0:1}",\
_xla_megascale_transfer_type="ALL_REDUCE"}, metadata={op_name="jit(step)/grads"}
  %recv.1 = (f32[64]{0}, u32[], token[]) recv(%token.1), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.8_0",_xla_megascale_target="{1,2}x{0:1}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send.1), channel_id=2
  %received = (f32[64]{0}, token[]) recv-done(%recv.1), channel_id=1
  %sum = f32[64]{0} get-tuple-element(%received), index=0
  ROOT %whole = f32[128]{0} all-gather(%sum), channel_id=3, replica_groups={{0,1}}, dimensions={0}
}
"""


def test_transfers_between_slices():
    found = collectives(parse(SLICES), {"data": 2, "fsdp": 2})
    seen = [(one.kind, one.axes, one.payload_bytes, one.moved_bytes, one.network, one.op_name) for one in found]
    assert seen == [
        ("all-reduce", ("data",), 256, 256, True, "jit(step)/grads"),
        ("all-gather", ("fsdp",), 512, 256, False, ""),
    ]
    assert by_kind(found) == {("all-reduce between slices", ("data",)): 256, ("all-gather", ("fsdp",)): 256}


@pytest.mark.parametrize(("text", "sizes"), [(TPU, {"data": 8}), (TPU, {"data": 3}), (SLICES, {"data": 2})])
def test_a_mesh_of_another_size_is_refused(text, sizes):
    with pytest.raises(ValueError, match=r"collectives: got a mesh of \d devices .* pass the shape of that mesh"):
        collectives(parse(text), sizes)
