"""The command line and the versions that a run is repeated by."""

from dataclasses import dataclass
from importlib.metadata import version

import pytest

from medjax.config import field, load
from medjax.store.provenance import command, options_changed, versions


@dataclass(frozen=True)
class Part:
    """A part."""

    name: str = field("x", help="a name", alias="--model")
    sizes: tuple[int, ...] = field((), help="sizes")
    files: tuple[str, ...] = field((), help="files")


@dataclass(frozen=True)
class Settings:
    """All of it."""

    part: Part = Part()
    fast: bool = field(False, help="or slow")


def test_the_command_names_what_is_not_usual_and_gives_the_settings_back():
    settings = Settings(Part("my model", (1, 2)), True)
    text = command(settings, "medjax.train")
    assert text == "python -m medjax.train --model 'my model' --part.sizes 1,2 --fast true"
    import shlex

    assert load(Settings, overrides=shlex.split(text)[3:]) == settings
    for files in (("a,b.jsonl",), ("[1].jsonl", "c"), ("a b", "c,d", '"e"'), ("f",)):
        settings = Settings(Part(files=files))
        assert load(Settings, overrides=shlex.split(command(settings, "medjax.train"))[3:]) == settings


def test_settings_that_changed():
    changed = options_changed(Settings(Part("a", (1,))), Settings(Part("b c", ()), True))
    assert changed == {
        "part.name": "--model a -> 'b c'",
        "part.sizes": "--part.sizes 1 -> none",
        "fast": "--fast false -> true",
    }
    assert options_changed(Settings(), Settings()) == {}


@pytest.mark.parametrize("more", [(), ("optax",)])
def test_versions(more):
    found = versions(*more)
    assert found["jax"] == version("jax")
    assert ("optax" in found) == bool(more)
    assert found.get("optax", version("optax")) == version("optax")


def test_a_command_says_what_kind_of_work_it_is():
    """Or the line that repeats a masked autoencoder would begin to train a language model."""

    @dataclass(frozen=True)
    class Mae:
        """Of another kind."""

        objective: str = field("mae", help="what is learned")

    @dataclass(frozen=True)
    class Text:
        """Of the kind that nobody needs to name."""

        objective: str = field("language", help="what is learned")

    assert command(Mae(), "medjax.train") == "python -m medjax.train --objective mae"
    assert command(Mae("regress"), "medjax.train") == "python -m medjax.train --objective regress"
    assert command(Text(), "medjax.train") == "python -m medjax.train"
