"""Configuration: one tree of frozen dataclasses a command; TOML in, TOML out; the command line wins.

A command declares its keys once and gets from that a typed object, a TOML form, options and `--help`:

  @dataclass(frozen=True)
  class ModelConfig:
      "The model that is graded."
      name: str = field("smollm2-135m", help="folder, GGUF file or registered name", alias="--model")

  @dataclass(frozen=True)
  class EvalConfig:
      model: ModelConfig = ModelConfig()
      out: str | None = field(None, help="run folder")

  python -m medjax.eval configs/eval/x.toml --model stories260k     [model]
                                                                    name = "stories260k"

A key is a dotted path of fields (`model.name`). Its annotation is bool, int, float, str, a union of these, Literal, or
tuple[one of those, ...], each also `| None`. A field annotated with a dataclass (or dataclass | None) is a section; the
first line of its docstring introduces it in --help, and `dataclass | None` stays None until one of its keys is given.
TOML has no null, so a key that may be None defaults to None and is left out of the file. A value is checked against its
annotation here and against the rest in the `__post_init__` of its dataclass, whose ValueError is reported with the key
path when it begins with the field's name ("steps: got 0, expected ...").
"""

import dataclasses
import difflib
import functools
import json
import os
import re
import shutil
import sys
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
_EXAMPLES = {bool: True, int: 1, float: 0.5, str: "text"}  # the scalars, in the order in which text is tried as them


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file or option, the key, and what to write instead."""


def field(default: Any = MISSING, *, help: str, alias: str | Sequence[str] = (), choices: Sequence[Any] = ()) -> Any:
    """Declare one key of a configuration dataclass.

    default  the value when nobody gives one; without it the key must be given
    help     its meaning, shown by --help; units belong here
    alias    short option or options besides --section.key, such as "--limit"
    choices  allowed values (of each element, for a tuple); Literal does the same in the annotation
    """
    aliases = (alias,) if isinstance(alias, str) else tuple(alias)
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases, "choices": tuple(choices)})


def load(
    cls: type[T],
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    prog: str = "",
) -> T:
    """Make a `cls` from its defaults, then the TOML file, then the overrides; the later one wins.

    path       a TOML file in UTF-8, or None
    overrides  a mapping from key or alias to value (text is read as on the command line), or command-line arguments,
               of which the one that is no option names the TOML file
    prog       the command whose --help errors point to, such as "medjax.eval"

    Raises ConfigError for an unreadable file, an unknown key, a value of the wrong type, a missing or refused value.
    """
    tree = _tree(cls)
    given: dict[str, tuple[str, Any]] = {}  # key path -> what errors call the place, value
    if isinstance(overrides, Mapping):
        changes = [(str(name), tree.find(name, prog), value) for name, value in overrides.items()]
    else:
        files, changes = _split_arguments(tree, overrides, prog)
        files = [str(path), *files] if path is not None else files
        if len(files) > 1:
            raise ConfigError(
                f"got {len(files)} files ({', '.join(files)}), expected one CONFIG.toml; drop the others."
            )
        path = files[0] if files else None
    if path is not None:
        for name, value in _leaves(_read_toml(path)):
            label = f"{path}: {name}"
            if name in tree.sections and value != {}:
                got = f"{_toml(value)} ({type(value).__name__})"
                raise ConfigError(f"{label}: got {got}, expected a section; write {name}.<key> = ... or [{name}].")
            key = None if name in tree.sections else tree.find(name, prog, f"{path}: ")
            given[name] = label, key.check(value, label) if key else value
    for label, key, value in changes:
        given[key.path] = label, key.check(value, label, is_text=isinstance(value, str))
    return _build(cls, tree, given, file="" if path is None else f"{path}: ")


def parse_command(
    cls: type[T], argv: Sequence[str] | None = None, *, prog: str, description: str = "", epilog: str = ""
) -> T:
    """Read `[CONFIG.toml] [--section.key value ...]` into a `cls`, as `python -m <prog>` does.

    Options are `--key value`, `--key=value`, `--flag`, `--no-flag`; lists are `a,b,c` or a TOML array; `none` is None.
    `--help` prints every key and exits with status 0; a wrong call puts one message, after the first word of prog, on
    stderr and exits with status 2.
    argv is without the program name; None takes that of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        try:
            print(help_text(cls, prog=prog, description=description, epilog=epilog), flush=True)
        except BrokenPipeError:
            # the reader, such as head, has seen enough; what is left goes nowhere, or Python complains as it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
    try:
        return load(cls, None, argv, prog=prog)
    except ConfigError as error:
        print(f"{prog.partition(' ')[0]}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def peek(argv: Sequence[str], key: str, *aliases: str) -> str | None:
    """The value of one key before the whole is read: a command whose keys depend on it asks for it first.

    key      such as "objective" or "model.name", read as --key and from the CONFIG.toml that argv names; options win
    aliases  such as "--model"
    Returns None where nobody gives it, or where the file cannot be read, which `load` will tell.
    """
    options = {f"--{key}", *aliases}
    for i, argument in enumerate(argv):
        option, equals, text = argument.partition("=")
        if option in options and (equals or argv[i + 1 : i + 2]):
            return text if equals else argv[i + 1]
    for argument in argv:
        if argument.endswith(".toml") and not argument.startswith("-"):
            try:
                return dict((name, str(value)) for name, value in _leaves(_read_toml(argument))).get(key)
            except ConfigError:
                return None
    return None


def help_text(cls: type, *, prog: str, description: str = "", epilog: str = "", width: int | None = None) -> str:
    """Return the --help page: every key with aliases, type, default and meaning, section by section.

    width is in columns, None takes the terminal's; epilog is printed as it is, since it holds commands.
    """
    tree = _tree(cls)
    fill = functools.partial(textwrap.fill, width=max(40, width or shutil.get_terminal_size().columns))
    fill = functools.partial(fill, break_on_hyphens=False, break_long_words=False)
    out = " [--out DIR]" if "out" in tree.keys else ""
    parts = [f"usage: python -m {prog} [CONFIG.toml] [--section.key value ...]{out}", fill(description)]
    for section, meaning in tree.sections.items():
        lines = [fill(f"{section}: {meaning}" if meaning else section, subsequent_indent="  ")] if section else []
        for key in [key for key in tree.keys.values() if key.path.rpartition(".")[0] == section]:
            default = "required" if key.default is MISSING else f"default {_option_text(key.default)}"
            names = dict.fromkeys((f"--{key.path}", *key.aliases))
            head = f"{', '.join(names)}  ({key.kind()}; {default})"
            lines.append(fill(head, initial_indent="  ", subsequent_indent="      "))
            lines.append(fill(key.help, initial_indent="      ", subsequent_indent="      "))
        parts.append("\n".join(line for line in lines if line))
    parts.append(fill("Options win over CONFIG.toml. Flags: --key, --no-key, --key=false. Lists: a,b. No value: none."))
    return "\n\n".join(part for part in (*parts, epilog.strip()) if part)


def to_dict(config: Any) -> dict[str, Any]:
    """Return the configuration as nested dicts of plain JSON values: tuples as lists, None kept."""
    tree = _tree(type(config))

    def plain(value: Any, path: str) -> Any:
        if dataclasses.is_dataclass(value):
            return {name: plain(getattr(value, name), _join(path, name)) for name, *_ in _fields(type(value))}
        value = tree.keys[path].check(value, path) if path in tree.keys else value
        return list(value) if isinstance(value, tuple) else value

    return plain(config, "")


def to_toml(config: Any) -> str:
    """Return the TOML text that `load` reads back to an equal configuration; keys that are None are left out."""

    def tables(values: Mapping[str, Any], path: str) -> Iterator[str]:
        lines = [f"{name} = {_toml(value)}" for name, value in values.items() if not isinstance(value, dict | None)]
        inner = {name: value for name, value in values.items() if isinstance(value, dict)}
        if path and (lines or not inner):
            lines.insert(0, f"[{path}]")
        if lines:
            yield "\n".join(lines) + "\n"
        for name, value in inner.items():
            yield from tables(value, _join(path, name))

    return "\n".join(tables(to_dict(config), ""))


@dataclass(frozen=True)
class _Key:
    path: str
    default: Any
    help: str
    aliases: tuple[str, ...]
    scalars: tuple[type, ...]  # allowed types of the value, or of its elements
    choices: tuple[Any, ...]
    is_list: bool
    may_be_none: bool

    def kind(self) -> str:
        names = " or ".join(scalar.__name__ for scalar in self.scalars)
        one = f"one of {', '.join(map(_option_text, self.choices))}" if self.choices else names
        return ("list of " if self.is_list else "") + one + (" or none" if self.may_be_none else "")

    def check(self, value: Any, label: str, *, is_text: bool = False) -> Any:
        """Return the value in the key's own type; raise ConfigError where it has none."""
        try:
            return self._read(value) if is_text else self._accept(value)
        except (TypeError, ValueError, OverflowError):
            self.refuse(label, _toml(value) if is_text else f"{_toml(value)} ({type(value).__name__})", value)

    def refuse(self, label: str, got: str, value: Any = "") -> typing.NoReturn:
        example = self._example(value)
        write = f"{label} {_option_text(example)}" if label.startswith("--") else f"{self.path} = {_toml(example)}"
        raise ConfigError(f"{label}: got {got}, expected {self.kind()}; write for example {write}.")

    def _accept(self, value: Any) -> Any:
        if value is None and self.may_be_none:
            return None
        if not self.is_list:
            return self._accept_one(value)
        if isinstance(value, list | tuple):
            return tuple(self._accept_one(item) for item in value)
        raise TypeError(value)

    def _accept_one(self, value: Any) -> Any:
        if type(value) is int and float in self.scalars and int not in self.scalars:
            value = float(value)
        if type(value) not in self.scalars or (self.choices and value not in self.choices):
            raise TypeError(value)
        return value

    def _read(self, text: str) -> Any:
        if text.lower() == "none" and self.may_be_none and text not in self.choices:
            return None
        if not self.is_list:
            return self._read_one(text)
        if text.startswith("["):
            return self._accept(tomllib.loads(f"value = {text}")["value"])
        return tuple(self._read_one(part.strip()) for part in text.split(",") if part.strip())

    def _read_one(self, text: str) -> Any:
        for scalar in (scalar for scalar in _EXAMPLES if scalar in self.scalars):
            try:
                value = {"true": True, "false": False}[text.lower()] if scalar is bool else scalar(text)
                return self._accept_one(value)
            except (KeyError, TypeError, ValueError):
                continue
        raise ValueError(text)

    def _example(self, got: Any) -> Any:
        """A value that would be right, near to what was got if possible: 10 for "10", a choice for its misspelling."""
        try:
            if got != "":
                return self._read(got)
        except (TypeError, ValueError, AttributeError):
            pass
        if not self.choices and self.default not in (MISSING, None, ()):
            return self.default
        near = difflib.get_close_matches(str(got), map(str, self.choices), n=1)
        likely = [choice for choice in self.choices if str(choice) in near]
        one = (*likely, *self.choices, _EXAMPLES[self.scalars[0]])[0]
        return (one,) if self.is_list else one


@dataclass(frozen=True)
class _Tree:
    keys: dict[str, _Key]
    sections: dict[str, str]  # path -> meaning; the root is ""
    names: dict[str, _Key]  # paths and aliases without dashes and with _ for -

    def find(self, name: str, prog: str, where: str = "") -> _Key:
        """Return the key of a path, alias or option; raise the error that names the nearest one."""
        dashes = "--" if name.startswith("-") else ""
        key = self.keys.get(name) if where else self.names.get(_plain(name))
        if key:
            return key
        near = {path.rpartition(".")[2]: path for path in reversed(self.keys)}
        near |= {_plain(alias): key.path for key in self.keys.values() for alias in key.aliases}
        near |= {alias.lstrip("-"): alias.lstrip("-") for key in self.keys.values() for alias in key.aliases if dashes}
        near |= {path: path for path in (*self.keys, *(() if dashes else self.sections))}
        found = difflib.get_close_matches(name.lstrip("-"), near, n=1)
        question = f"did you mean {dashes}{near[found[0]]}? " if found else ""
        known = f"{prog} --help lists all keys." if prog else f"The keys are {', '.join(self.keys)}."
        raise ConfigError(f"{where}unknown {'option' if dashes else 'key'} {name}; {question}{known}")


def _plain(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _tree(cls: Any) -> _Tree:
    tree = _Tree({}, {}, {})
    _declare(tree, cls, "", None)
    for key in tree.keys.values():
        for name in (key.path, *key.aliases):
            other = tree.names.setdefault(_plain(name), key)
            if other is not key:
                raise TypeError(f"{cls.__name__}: {name} names both {other.path} and {key.path}; rename one.")
    return tree


def _declare(tree: _Tree, cls: Any, path: str, base: Any) -> None:
    if not getattr(getattr(cls, "__dataclass_params__", None), "frozen", False):
        raise TypeError(f"{cls.__name__}: got a class that can change, expected @dataclass(frozen=True).")
    first_line = (cls.__doc__ or "").strip().partition("\n")[0]
    # a dataclass without a docstring gets its signature as one
    tree.sections[path] = "" if first_line.startswith(f"{cls.__name__}(") else first_line
    for name, members, section, default, metadata in _fields(cls, base):
        where = f"{cls.__name__}.{name}"
        may_be_none = type(None) in members
        if may_be_none and default is not None:
            raise TypeError(f"{where}: may be None but defaults to {default!r}; TOML has no null, so default to None.")
        if section:
            _declare(tree, section, _join(path, name), default)
            continue
        kinds = [kind for kind in members if kind is not type(None)]
        is_list = typing.get_origin(kinds[0]) is tuple and typing.get_args(kinds[0])[1:] == (...,)
        kinds = list(_members(typing.get_args(kinds[0])[0])) if is_list and len(kinds) == 1 else kinds
        choices = metadata.get("choices", ())
        if typing.get_origin(kinds[0]) is Literal and len(kinds) == 1:
            choices = typing.get_args(kinds[0])
            kinds = list(dict.fromkeys(map(type, choices)))
        if not set(kinds) <= set(_EXAMPLES):
            raise TypeError(f"{where}: no key can be {' | '.join(map(str, members))}; config.py lists what it can be.")
        help, aliases = metadata.get("help", ""), metadata.get("aliases", ())
        key = _Key(_join(path, name), default, help, aliases, tuple(kinds), choices, is_list, may_be_none)
        tree.keys[key.path] = key
        if default is not MISSING:
            key.check(default, f"{where}: default")


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _fields(cls: Any, base: Any = None) -> Iterator[tuple[str, tuple[Any, ...], Any, Any, Mapping[str, Any]]]:
    """Yield name, members of the annotation, section class or None, default (from `base` if there), metadata."""
    annotations = typing.get_type_hints(cls)
    for item in [item for item in dataclasses.fields(cls) if item.init]:
        default = item.default if item.default_factory is MISSING else item.default_factory()
        default = getattr(base, item.name) if isinstance(base, cls) else default
        members = _members(annotations[item.name])
        section = next((member for member in members if dataclasses.is_dataclass(member)), None)
        yield item.name, members, section, default, item.metadata


def _build(
    cls: type[T], tree: _Tree, given: Mapping[str, tuple[str, Any]], *, file: str, path: str = "", base: Any = None
) -> T:
    values: dict[str, Any] = {}
    for name, _, section, default, _ in _fields(cls, base):
        inner = _join(path, name)
        values[name] = given[inner][1] if inner in given else default
        if section and (default is not None or any(f"{other}.".startswith(f"{inner}.") for other in given)):
            values[name] = _build(section, tree, given, file=file, path=inner, base=default)
        elif values[name] is MISSING:
            kind = tree.keys[inner].kind()
            raise ConfigError(f"{file}{inner}: no value given, expected {kind}; set it in the file or by --{inner}.")
    try:
        return cls(**values)
    except ValueError as error:
        named = re.match(r"([\w.]+): ", str(error))
        label = _join(path, named[1]) if named else ""
        if named and label in tree.keys:
            label = given[label][0] if label in given else label
            raise ConfigError(f"{label}: {str(error)[named.end() :]}") from None
        raise ConfigError(f"{file}{path}{': ' if path else ''}{error}") from None


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        # editors on Windows put a byte order mark first, which TOML does not allow
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a CONFIG.toml here; options start with --.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}; text needs quotes, lists need [ ].") from None


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, _join(path, name))
        else:
            yield _join(path, name), value


def _split_arguments(tree: _Tree, argv: Iterable[str], prog: str) -> tuple[list[str], list[tuple[str, _Key, Any]]]:
    """Return the arguments that are no options, and label, key and text of each option."""
    files: list[str] = []
    changes: list[tuple[str, _Key, Any]] = []
    rest = list(argv)
    while rest:
        option, equals, text = rest.pop(0).partition("=")
        flag = tree.names.get(_plain(option.removeprefix("--no-"))) if option.startswith("--no-") else None
        if not option.startswith("-"):
            files.append(option + equals + text)
        elif flag and bool in flag.scalars and not equals and _plain(option) not in tree.names:
            changes.append((option, flag, "false"))
        else:
            key = tree.find(option, prog)
            if not equals and bool in key.scalars and not (rest and rest[0] in ("true", "false")):
                text = "true"
            elif not equals and (not rest or rest[0].startswith("--")):
                key.refuse(option, "no value")
            changes.append((option, key, text if equals or text else rest.pop(0)))
    return files, changes


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON lets DEL stand, TOML does not
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option_text(value: Any) -> str:
    """The value as one types it after an option."""
    if isinstance(value, tuple) and value and not any("," in str(item) for item in value):
        return ",".join(map(_option_text, value))
    if isinstance(value, str) and value and value.isprintable():
        return value
    return "none" if value is None else _toml(value)
