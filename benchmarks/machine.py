"""The machine that a benchmark runs on: cores held by affinity, its name, the rate of its matmuls in JAX."""

import os
import platform
import time
from pathlib import Path

JAX_PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def hold_to_cores(threads: int, device: str) -> None:
    """Give this process and its children `threads` cores (CPU runs); choose JAX's platform. Before JAX starts it.

    Raises ValueError when there are fewer cores, or when cores cannot be chosen and there are more.
    """
    import jax

    jax.config.update("jax_platforms", JAX_PLATFORMS[device])  # the environment counts only before the first import
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leave the peer room on a GPU
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if device != "cpu" or len(cores()) == threads:
        return
    if len(cores()) < threads or not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"--threads: got {threads}, expected at most the {len(cores())} cores here (all on macOS).")
    os.sched_setaffinity(0, sorted(cores())[:threads])


def cpu_name() -> str:
    """The processor's model name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def matmul_gflops(
    repeats: int = 20, *, sizes: tuple[int, int, int] = (1024, 576, 1536), dtype: str = "float32"
) -> float:
    """Best rate of [rows, width] x [width, wide] x [wide, width], by default SmolLM2's MLP without its activation."""
    import jax
    import jax.numpy as jnp

    rows, width, wide = sizes
    keys = jax.random.split(jax.random.key(0), 3)
    x, up, down = (
        (jax.random.normal(key, shape, jnp.float32) / shape[0] ** 0.5).astype(dtype)
        for key, shape in zip(keys, ((rows, width), (width, wide), (wide, width)), strict=True)
    )

    @jax.jit
    def chain(x, up, down):
        for _ in range(2):
            x = x @ up @ down
        return x

    chain(x, up, down).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        chain(x, up, down).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * 4 * rows * width * wide / best / 1e9
