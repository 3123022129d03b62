"""medjax: medical foundation models in JAX/Flax, trained, adapted and graded on a laptop, one GPU or a pod.

`import medjax` is cheap: a public name, and JAX with it, is imported from its module when it is first used.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medjax.config import load as load_config
    from medjax.data.ecg.readers import read_ecg
    from medjax.data.qa import Item
    from medjax.eval.run import evaluate
    from medjax.infer.ecg import EcgModel
    from medjax.infer.generator import Generator
    from medjax.infer.language_model import load_model
    from medjax.infer.scorer import Scorer

__version__ = "0.1.0"

__all__ = ["EcgModel", "Generator", "Item", "Scorer", "evaluate", "load_config", "load_model", "read_ecg"]

_PUBLIC = {
    "EcgModel": "medjax.infer.ecg:EcgModel",
    "Generator": "medjax.infer.generator:Generator",
    "Item": "medjax.data.qa:Item",
    "Scorer": "medjax.infer.scorer:Scorer",
    "evaluate": "medjax.eval.run:evaluate",
    "load_config": "medjax.config:load",
    "load_model": "medjax.infer.language_model:load_model",
    "read_ecg": "medjax.data.ecg.readers:read_ecg",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        near = difflib.get_close_matches(name, _PUBLIC, n=1)
        question = f"did you mean {near[0]}? " if near else ""
        raise AttributeError(f"module medjax has no name {name}; {question}Public names are {', '.join(_PUBLIC)}.")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
