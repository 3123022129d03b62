"""Loops of compiled programs: turns, executions, what cannot be known; lines as the compilers print them."""

import jax
import jax.numpy as jnp
import pytest

from medjax.plan.hlo import parse
from medjax.plan.instructions import Array, arrays_of, bits


def compiled(function, *shapes, **options):
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return jax.jit(function, **options).lower(*arguments).compile().as_text()


def body_times(module, opcode="dot"):
    """Executions of each matrix product, fused or not, sorted."""
    return sorted(times for _, one, times in module.steps(inside=True) if one.opcode == opcode)


def nested(x):
    def outer(carried, _):
        inner = jax.lax.fori_loop(0, 3, lambda _, h: jnp.sin(h) @ carried, carried)
        return inner @ carried, None

    return jax.lax.scan(outer, x, length=5)[0] @ x


SQUARE = ((16, 16), jnp.float32)


def test_nested_loops_multiply():
    module = parse(compiled(nested, SQUARE))
    assert sorted(loop.turns for loop in module.loops) == [3, 5]
    assert body_times(module) == [1, 5, 15]
    assert module.data_loops == ()


def without_known_counts(text: str) -> str:
    """As TPU prints loops: nothing but the condition says how often they turn."""
    return text.replace("known_trip_count", "other")


@pytest.mark.parametrize(
    ("start", "limit", "step"), [(0, 7, 1), (3, 7, 1), (0, 7, 2), (0, 8, 2), (7, 7, 1), (9, 7, 1), (-3, 4, 3)]
)
def test_turns_from_the_condition_are_those_that_are_made(start, limit, step):
    def loop(x):
        return jax.lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + step, jnp.sin(c[1]) @ x), (start, x))[1]

    module = parse(without_known_counts(compiled(loop, SQUARE)))
    expected = len(range(start, limit, step))
    # XLA takes loops apart that turn once or never
    assert [one.turns for one in module.loops] == ([expected] if expected > 1 else [])
    assert body_times(module) == ([expected] if expected else [])


@pytest.mark.parametrize(("start", "limit", "step"), [(7, 0, -1), (7, 1, -2)])
def test_turns_of_a_counter_that_falls(start, limit, step):
    def loop(x):
        return jax.lax.while_loop(lambda c: c[0] > limit, lambda c: (c[0] + step, jnp.sin(c[1]) @ x), (start, x))[1]

    module = parse(without_known_counts(compiled(loop, SQUARE)))
    assert [one.turns for one in module.loops] == [len(range(start, limit, step))]


def test_a_limit_that_is_data_is_open_until_it_is_given():
    def loop(x, turns):
        with jax.named_scope("chunks"):
            return jax.lax.fori_loop(0, turns, lambda _, h: jnp.sin(h) @ x, x)

    text = compiled(loop, SQUARE, ((), jnp.int32))
    module = parse(text)
    assert [(loop.turns, loop.given) for loop in module.loops] == [(None, False)]
    assert "chunks" in module.data_loops[0].op_name
    assert body_times(module) == [1]
    given = parse(text, {"nowhere": 3, "chunks": 8})
    assert [(loop.turns, loop.given) for loop in given.loops] == [(8, True)]
    assert given.data_loops == given.loops
    assert body_times(given) == [8]


def test_a_given_count_does_not_replace_a_known_one():
    assert sorted(loop.turns for loop in parse(compiled(nested, SQUARE), {"while": 100}).loops) == [3, 5]


def test_an_end_that_depends_on_the_result_is_open():
    def loop(x):
        return jax.lax.while_loop(lambda h: jnp.sum(h) < 10, lambda h: jnp.sin(h) @ x, x)

    assert [one.turns for one in parse(compiled(loop, SQUARE)).loops] == [None]


def test_every_branch_counts_as_taken():
    def choice(x, which):
        return jax.lax.switch(which, [lambda h: h @ h, lambda h: h @ h @ h], x)

    assert body_times(parse(compiled(choice, SQUARE, ((), jnp.int32)))) == [1, 1, 1]


# A loop as TPU prints it after hoisting: limit and step are carried in its tuple, and a kernel's attributes hold line
# breaks, one of them before a closing brace in the first column.
HOISTED = """HloModule jit_step, is_scheduled=true

FileNames
1 "step.py"

%inner (p.0: s32[], p.1: s32[]) -> pred[] {
  %p.0 = s32[] parameter(0)
  %p.1 = s32[] parameter(1)
  ROOT %greater = pred[] compare(%p.1, %p.0), direction=GT
}

%wide.body (wide.1: (s32[], bf16[8,128], s32[])) -> (s32[], bf16[8,128], s32[]) {
  %wide.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %one = s32[]{:T(128)} constant(2)
  %i = s32[]{:T(128)} get-tuple-element(%wide.1), index=0
  %i.copy = s32[]{:T(128)} copy(%i)
  %h = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.1), index=1
  %limit = s32[]{:T(128)} get-tuple-element(%wide.1), index=2
  %splash_mha_fwd.1 = bf16[8,128]{1,0:T(8,128)(2,1)} custom-call(%h), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/attention/splash"}, backend_config={"custom_call_config":{"body":"TUz("}}
  %next = s32[]{:T(128)} add(%i.copy, %one)
  ROOT %tuple.1 = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, s32[]) tuple(%next, %splash_mha_fwd.1, %limit)
}

%wide.condition (wide.2: (s32[], bf16[8,128], s32[])) -> pred[] {
  %wide.2 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%wide.2), index=0
  %end = s32[]{:T(128)} get-tuple-element(%wide.2), index=2
  ROOT %fused = pred[] fusion(%count, %end), kind=kLoop, calls=%inner
}, execution_thread="main"

ENTRY %main.7 (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}, metadata={op_name="frozen[\\'a\\']"}
  %start = s32[] constant(4)
  %stop = s32[] constant(11)
  %tuple.2 = (s32[], bf16[8,128]{1,0}, s32[]) tuple(%start, %a, %stop)
  %while.1 = (s32[], bf16[8,128]{1,0}, s32[]) while(%tuple.2), condition=%wide.condition, body=%wide.body, \
metadata={op_name="jit(step)/while"}
  ROOT %out = bf16[8,128]{1,0} get-tuple-element(%while.1), index=1
}
"""


def test_a_hoisted_limit_and_kernels_over_several_lines():
    module = parse(HOISTED)
    assert [(loop.name, loop.turns, loop.op_name) for loop in module.loops] == [("while.1", 4, "jit(step)/while")]
    assert module.times == {"inner": 5, "wide.body": 4, "wide.condition": 5, "main.7": 1}
    assert module.inside == {"inner"}
    body = module.computations["wide.body"]
    kernel = body.instructions["splash_mha_fwd.1"]
    assert (kernel.opcode, kernel.operands, kernel.op_name) == ("custom-call", ("h",), "jit(step)/attention/splash")
    assert kernel.attribute("custom_call_target") == '"tpu_custom_call"'
    assert (body.root.name, list(body.instructions)[-2]) == ("tuple.1", "next")
    assert module.partitions == 1


def test_a_loop_that_changes_its_limit_is_open():
    text = HOISTED.replace("tuple(%next, %splash_mha_fwd.1, %limit)", "tuple(%next, %splash_mha_fwd.1, %next)")
    assert [loop.turns for loop in parse(text).loops] == [None]


@pytest.mark.parametrize(
    ("text", "expected", "size", "padded"),
    [
        ("f32[]", Array("f32"), 4, 4),
        ("pred[7]{0}", Array("pred", (7,), (0,)), 7, 7),
        ("s4[3,5]{1,0}", Array("s4", (3, 5), (1, 0)), 8, 8),
        ("bf16[512,16]{0,1:T(8,128)(2,1)}", Array("bf16", (512, 16), (0, 1), (8, 128)), 16384, 16384),
        ("bf16[512,16]{1,0:T(8,128)(2,1)S(1)}", Array("bf16", (512, 16), (1, 0), (8, 128), 1), 16384, 131072),
        ("f32[4,1000,3]{2,1,0:T(8,128)}", Array("f32", (4, 1000, 3), (2, 1, 0), (8, 128)), 48000, 2048000),
        ("f8e4m3fn[16]{0}", Array("f8e4m3fn", (16,), (0,)), 16, 16),
        ("u32[<=6]{0}", Array("u32", (6,), (0,)), 24, 24),
    ],
)
def test_arrays_and_their_padding(text, expected, size, padded):
    assert arrays_of(text) == (expected,)
    assert (expected.bytes, expected.padded_bytes) == (size, padded)


def test_tuples_are_listed_flat():
    arrays = arrays_of("((bf16[4,8]{1,0}), /*index=1*/f32[2]{0:S(5)}, token[])")
    assert [(one.dtype, one.dims, one.space) for one in arrays] == [
        ("bf16", (4, 8), 0),
        ("f32", (2,), 5),
        ("token", (), 0),
    ]
    assert [bits(name) for name in ("bf16", "s8", "u4", "c64", "token", "f64")] == [16, 8, 4, 64, 0, 64]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module @jit_step {", 'got text that begins with .module @jit_step.*expected "HloModule"'),
        ("HloModule a\n\n%f (p: f32[]) -> f32[] {\n  %p = f32[] parameter(0)\n", "ends inside f, expected an ENTRY"),
        (HOISTED.replace("calls=%inner", "calls=%lost"), "lost is called but not there"),
    ],
)
def test_what_is_no_whole_program_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
