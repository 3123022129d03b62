"""Reading of the compiler's figures and of its complaints."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from medjax.parallel.chips import GIB
from medjax.plan.compiled import compiled, out_of_memory

USED = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.17G of 15.75G hbm.
Exceeded hbm capacity by 2.42G.

  1. Size: 4.00G
     Shape: bf16[7168,8192]{1,0:T(8,128)(2,1)}
     Operator: op_name="jit(step)/jvp(Decoder)/while/body/mlp/up/dot_general"
  2. Size: 512.0M
     Shape: f32[512,8000]{1,0}
     Operator: op_name="jit(step)/jvp(loss)/while/body/dot_general"
"""
EXCEEDS = "RESOURCE_EXHAUSTED: total memory required for HLO temporaries (600.00G) exceeds available HBM (15.75G)"


def test_the_complaint_of_a_full_chip_is_three_lines():
    found = out_of_memory(USED)
    assert found.needed == int(18.17 * GIB)
    assert found.available == int(15.75 * GIB)
    assert str(found).splitlines() == [
        "does not fit: it needs 18.17 GiB of each chip, which has 15.75 GiB",
        "     4.00G bf16[7168,8192] dot_general",
        "    512.0M f32[512,8000] dot_general",
    ]


def test_the_other_spelling_and_other_failures():
    assert str(out_of_memory(EXCEEDS)) == "does not fit: it needs 600.00 GiB of each chip, which has 15.75 GiB"
    assert out_of_memory(EXCEEDS, held=8 * GIB).needed == 608 * GIB  # arguments come on top
    assert out_of_memory(USED, held=8 * GIB).needed == int(18.17 * GIB)
    assert out_of_memory("INVALID_ARGUMENT: no such thing") is None


def test_figures_of_a_compiled_program():
    def step(state, x):
        return state + jnp.sum(x @ x.T), jnp.sum(x)

    state, x = jax.ShapeDtypeStruct((256,), jnp.float32), jax.ShapeDtypeStruct((64, 32), jnp.float32)
    found = compiled(lambda: jax.jit(step, donate_argnums=0).lower(state, x))
    assert found.memory.argument == 256 * 4 + 64 * 32 * 4
    assert found.memory.alias == 256 * 4  # the donated state is the new one's place
    assert found.memory.output >= 256 * 4 + 4
    assert found.memory.peak == (
        found.memory.argument + found.memory.temporary + found.memory.output - found.memory.alias + found.memory.code
    )
    assert found.flops >= 2 * 64 * 64 * 32
    assert found.module({}).entry


def test_a_failure_of_another_kind_is_passed_on():
    def fails():
        raise RuntimeError("INTERNAL: a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        compiled(lambda: SimpleNamespace(compile=fails))
