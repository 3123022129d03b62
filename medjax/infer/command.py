"""What the commands that run a model have in common: where compiled programs are kept, and how a command ends.

0   done
1   the work failed: a full disk, not enough memory, nobody left who reads the output
2   the call or the input was wrong: ValueError and FileNotFoundError, whose messages say what to do; or a package of
    the extra `ecg` is missing
75  stopped by Ctrl-C or SIGTERM
"""

import os
import sys
from collections.abc import Callable
from typing import Protocol

from medjax.data.ecg.extra import what_to_install


class Engine(Protocol):
    """Settings of how the work is laid out on the devices; see infer.settings and infer.ecg_settings."""

    @property
    def compilation_cache(self) -> bool: ...
    @property
    def to_take_less(self) -> str: ...


def exit_status(prog: str, work: Callable[[], None], engine: Engine, *, stopped: str) -> int:
    """Do the work and return the exit status; what went wrong is told in one line on stderr.

    engine   knows what to do about too little memory
    stopped  what is told when the user stops the work
    """
    try:
        work()
    except (ValueError, FileNotFoundError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        told = what_to_install(error)
        if not told:
            raise
        print(f"{prog}: {told}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # what is left to print goes nowhere, or Python complains as it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: {stopped}", file=sys.stderr)
        return 75
    except (MemoryError, RuntimeError) as error:
        # JAX tells a full device by a RuntimeError with this status in its text
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).partition("\n")[0] or "out of memory"
        print(
            f"{prog}: {first}: got a run that does not fit into memory; {engine.to_take_less}",
            file=sys.stderr,
        )
        return 1
    return 0


def keep_compiled(engine: Engine) -> None:
    """Keep compiled programs in the cache folder, where the settings want it and no other is named for JAX already."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from medjax.assets import cache_folder

    if engine.compilation_cache and not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
