"""One line of a compiled program (HLO): opcode, arrays, operands, attributes; and the computations made of such lines.

  %all-gather.1 = bf16[1024,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%copy.3), channel_id=9, dimensions={0}, …
  name            type, axes by speed, tile, memory      opcode     operands  attributes

Lines may hold line breaks, inside the attributes of kernels. How often each is executed is `hlo`'s matter.
Source: openxla/xla, xla/hlo/parser (grammar), xla/shape_util.h and xla/layout.h (tiles, memory spaces).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}  # others end in their number of bits
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=\s]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = ("calls", "to_apply", "called_computations", "branch_computations", "true_computation", "false_computation")


@dataclass(frozen=True)
class Array:
    """One array of a shape: element type, sizes as written, and how it lies in memory.

    order  axes from the fastest-varying one; empty for the usual order
    tile   sizes to which the fastest axes are padded, slowest first; empty without tiling
    space  0 main memory (HBM); on TPU 1 VMEM, others registers and flags; on a device with host memory 5
    """

    dtype: str
    dims: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        return prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without padding."""
        return ceil(self.elements * bits(self.dtype) / 8)

    @property
    def padded_bytes(self) -> int:
        """With the axes of a tile padded to it: what the array really occupies."""
        stored = [self.dims[axis] for axis in reversed(self.order)] if self.order else list(self.dims)
        for place, size in enumerate(reversed(self.tile), 1):
            if place <= len(stored):
                stored[-place] = ceil(stored[-place] / size) * size
        return ceil(prod(stored) * bits(self.dtype) / 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    arrays    of its result; a tuple's are listed flat
    operands  names of instructions of the same computation
    literal   text between the brackets: a constant's value, a parameter's number
    rest      text after the brackets: attributes
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    rest: str

    def attribute(self, name: str) -> str:
        """An attribute's text, without the braces around it; "" when it is not there."""
        found = re.search(rf"(?:^|, ){name}=", self.rest)
        if not found:
            return ""
        text = self.rest[found.end() :]
        if text.startswith("{"):
            return text[1 : _closing(text, 0, "{}")]
        return re.split(r", (?=\w+=)", text, maxsplit=1)[0]

    @cached_property
    def op_name(self) -> str:
        """Where in the Python program it comes from, as "jit(step)/jvp(Decoder)/while/body/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls, but for a loop's condition and body."""
        return tuple(
            name for key in _CALLS for name in re.findall(r"%?([\w.\-]+)", self.attribute(key)) if self.attribute(key)
        )

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of execution where the program is scheduled."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {int(one.literal): one for one in self.instructions.values() if one.opcode == "parameter"}


def read(text: str) -> tuple[str, str, dict[str, Computation]]:
    """The header, the entry's name and all computations of a program's text.

    Raises ValueError when the text is no HLO module, or ends too early.
    """
    header, *lines = text.split("\n") if text.startswith("HloModule") else [""]
    if not header:
        raise ValueError(
            f'hlo: got text that begins with {text[:40]!r}, expected "HloModule"; pass compiled.as_text() '
            "of a compiled program (lowered.as_text() is another language)."
        )
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    body: list[str] = []
    for line in lines:
        if not name:
            if found := _HEAD.match(line):
                name, body = found[2], []
                entry = name if found[1] else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            computations[name], name = _computation(name, body), ""
        elif _LINE.match(line) or not body:
            body.append(line)
        else:
            body[-1] += "\n" + line
    if not entry or name:
        raise ValueError(
            f"hlo: got a module that ends inside {name or 'its header'}, expected an ENTRY computation; pass the whole "
            "text of compiled.as_text()."
        )
    return header, entry, computations


def bits(dtype: str) -> int:
    """Bits of one element: 16 for "bf16", 8 for "f8e4m3fn", 4 for "s4"; a truth value takes 8."""
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type, as "bf16[4096,16]{0,1:T(8,128)(2,1)S(1)}" or a tuple of such."""
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(re.sub(r"/\*.*?\*/", "", text)):
        order, _, storage = layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", storage)
        space = re.search(r"S\((\d+)\)", storage)
        arrays.append(
            Array(
                dtype,
                numbers(dims.replace("<=", "")),
                numbers(order),
                numbers(tile[1]) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return tuple(arrays)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas: (0, 2) of "0,2"."""
    return tuple(int(part) for part in text.split(",") if part.strip())


def _computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root = None
    for line in lines:
        instruction = _instruction(line)
        instructions[instruction.name] = instruction
        if line.lstrip().startswith("ROOT "):
            root = instruction
    return Computation(name, instructions, root or instruction)


def _instruction(line: str) -> Instruction:
    found = _LINE.match(line)
    start = found.end() if found else 0
    if line[start] == "(":
        end = _closing(line, start, "()") + 1
    else:
        end = re.compile(r"[^\s{]*(\{[^}]*\})?").match(line, start).end()  # type: ignore[union-attr]
    bracket = line.index("(", end)
    close = _closing(line, bracket, "()")
    literal = line[bracket + 1 : close]
    return Instruction(
        found[2] if found else "",
        line[end:bracket].strip(),
        arrays_of(line[start:end]),
        tuple(_NAME.findall(literal)),
        literal,
        line[close + 1 :].removeprefix(", "),
    )


def _closing(text: str, start: int, pair: str) -> int:
    """Place of the bracket that closes the one at `start`; brackets in quotes do not count."""
    depth = 0
    for found in re.compile(rf'"(?:[^"\\]|\\.)*"|[{re.escape(pair)}]').finditer(text, start):
        depth += {pair[0]: 1, pair[1]: -1}.get(found[0], 0)
        if depth == 0:
            return found.start()
    raise ValueError(f"hlo: got {text[:80]!r} with an open {pair[0]!r}; pass the whole text of compiled.as_text().")
