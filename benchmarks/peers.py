"""Virtual environments of the packages medjax is compared with, one a peer, apart from medjax's own environment.

They lie in the folder MEDJAX_PEERS, else in `peers` of medjax's cache folder, and are made by `python -m venv` and pip
when they are missing. A file `complete.json` is written last: an environment that was cut short is finished next time.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from medjax.assets import cache_folder

# one pip call each, in this order: torch first, so that the release is the one named here
PEERS = {
    "lm-eval": (("torch==2.13.0",), ("transformers", "lm-eval", "accelerate", "gguf", "sentencepiece")),
    "generate": (("torch==2.13.0",), ("transformers", "accelerate", "gguf", "sentencepiece"), ("xllamacpp",)),
    "torch": (("torch==2.13.0",), ("numpy", "safetensors")),
    "peft": (("torch==2.13.0",), ("transformers", "peft", "accelerate", "gguf", "sentencepiece")),
}


def peers_folder() -> Path:
    """MEDJAX_PEERS, else `peers` in medjax's cache folder. Not created here."""
    own = os.environ.get("MEDJAX_PEERS")
    return Path(own).expanduser() if own else cache_folder() / "peers"


def peer_python(name: str) -> Path:
    """The Python interpreter of a peer's environment, which is made when it is missing; says what it does.

    Raises RuntimeError with the failed command and what pip said last.
    """
    folder = peers_folder() / name
    python = folder / "bin" / "python"
    complete = folder / "complete.json"
    steps = [list(step) for step in PEERS[name]]
    if python.exists() and complete.is_file() and json.loads(complete.read_text("utf-8")) == steps:
        print(f"peer {name}: environment {folder}", flush=True)
        return python
    if importlib.util.find_spec("ensurepip") is None:
        needed = " ".join(requirement for step in steps for requirement in step)
        raise RuntimeError(
            f"peer {name}: this Python cannot make an environment with pip (no ensurepip); install your system's "
            f"python3-venv package, or make {folder} by hand with {needed} and pass --peer-python."
        )
    print(f"peer {name}: making the environment {folder} (once; downloads about 1 GB, more with CUDA)", flush=True)
    _run(name, [sys.executable, "-m", "venv", str(folder)])
    for step in steps:
        _run(name, [str(python), "-m", "pip", "install", "--no-input", "--progress-bar=off", *step])
    complete.write_text(json.dumps(steps), "utf-8")
    return python


def _run(name: str, command: list[str]) -> None:
    print("  $", shlex.join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = " | ".join(done.stdout.strip().splitlines()[-5:]) or "nothing"
        raise RuntimeError(
            f"peer {name}: `{shlex.join(command)}` ended with status {done.returncode} and said: {said}. Expected it "
            "to install; check the network and the disk and start again, or pass a ready environment's interpreter."
        )
