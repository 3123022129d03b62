"""The text of a compiled program (HLO, `compiled.as_text()`): its instructions, and how often a step executes each.

A program is a list of computations; one is the entry, the others are called: bodies of loops, branches, fusions. What
XLA's own cost analysis leaves out is how often a loop turns, so that a scanned stack of layers counts as one layer.
Here every computation has `times`, its executions in one run of the program on one chip:

  entry 1
  body of a loop       times of the loop x turns; a nested loop multiplies again
  branch of a choice   times of the choice: each branch as if it were always taken, an upper bound
  fusion, call         times of the caller

Turns of a loop come from XLA's `known_trip_count` where the text has it (CPU, GPU), else from the condition: counter,
start, step and limit, where these are constants (TPU). A loop whose limit is data has turns that only the caller can
know: `parse(text, {"loss": 8})`; without that it counts once. `Module.data_loops` names both. Figures are made from
a module in `collectives` and `figures`.

Written for the text of jax 0.10 to 0.12 on CPU and TPU, and for what GPU programs add.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from math import ceil

from medjax.plan.instructions import Computation, Instruction, read

# opcodes that hand on their first operand's value
_SAME = {"copy", "convert", "bitcast", "reshape", "copy-start", "copy-done", "optimization-barrier"}


@dataclass(frozen=True)
class Loop:
    """A while instruction.

    turns  in one execution of it; None when the text does not say
    given  whether the caller of `parse` gave them
    """

    name: str
    op_name: str
    computation: str
    turns: int | None
    given: bool = False


@dataclass(frozen=True)
class Module:
    """A parsed program.

    times   executions of each computation in one run, on one chip
    inside  computations that are part of one instruction (fusions, reducers): their values stay on the chip
    """

    header: str
    computations: dict[str, Computation]
    entry: str
    loops: tuple[Loop, ...] = ()
    times: dict[str, int] = field(default_factory=dict)
    inside: frozenset[str] = frozenset()

    @property
    def data_loops(self) -> tuple[Loop, ...]:
        """Loops whose end is data: as often as the caller said, or counted once as nothing says how often."""
        return tuple(loop for loop in self.loops if loop.given or loop.turns is None)

    @property
    def partitions(self) -> int:
        """Devices that run the program together."""
        return int(re.search(r"num_partitions=(\d+)", self.header)[1]) if "num_partitions=" in self.header else 1  # type: ignore[index]

    def steps(self, inside: bool = False) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every executed instruction with its computation and its times a run; those in fusions only if asked for."""
        for computation in self.computations.values():
            times = self.times.get(computation.name, 0)
            if times and (inside or computation.name not in self.inside):
                for instruction in computation.instructions.values():
                    yield computation, instruction, times

    def users(self, name: str) -> list[tuple[Computation, Instruction]]:
        """Instructions that call the computation of that name."""
        return self._callers.get(name, [])

    @cached_property
    def _callers(self) -> dict[str, list[tuple[Computation, Instruction]]]:
        callers: dict[str, list[tuple[Computation, Instruction]]] = {}
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                for name in instruction.called:
                    callers.setdefault(name, []).append((computation, instruction))
        return callers


def parse(text: str, turns: Mapping[str, int] | None = None) -> Module:
    """Read a compiled program.

    text   as of `jitted.lower(…).compile().as_text()`
    turns  of loops whose limit is data, by a part of their op_name, as {"jvp(loss)": 8}; others keep their own count

    Raises ValueError when the text is no HLO module, or a computation that is called is missing.
    """
    header, entry, computations = read(text)
    return _with_times(Module(header, computations, entry), turns or {})


def _with_times(module: Module, given: Mapping[str, int]) -> Module:
    """Count executions, callers before the computations that they call."""
    bodies = [
        (computation, one)
        for computation in module.computations.values()
        for one in computation.instructions.values()
        if one.opcode == "while"
    ]
    called = {
        computation.name: {name for one in computation.instructions.values() for name in one.called}
        for computation in module.computations.values()
    }
    for computation, one in bodies:
        called[computation.name] |= {_plain(one.attribute("condition")), _plain(one.attribute("body"))}
    if missing := {name for names in called.values() for name in names} - called.keys():
        raise ValueError(f"hlo: {sorted(missing)[0]} is called but not there; pass the whole text of the program.")
    try:
        order = list(TopologicalSorter(called).static_order())[::-1]
    except CycleError as error:
        raise ValueError(f"hlo: computations call one another in a circle: {error.args[1]}") from None
    times = dict.fromkeys(module.computations, 0)
    times[module.entry] = 1
    inside: set[str] = set()
    loops = []
    for name in order:
        computation = module.computations[name]
        for one in computation.instructions.values():
            if one.opcode == "while":
                loop = _loop(module, computation, one, given)
                loops.append(loop)
                turns = 1 if loop.turns is None else loop.turns
                times[_plain(one.attribute("condition"))] += times[name] * (turns + 1)
                times[_plain(one.attribute("body"))] += times[name] * turns
                continue
            alone = one.opcode in ("call", "conditional", "async-start")
            for target in one.called:
                if alone or one.opcode in ("fusion", "custom-call"):
                    times[target] += times[name]
                if name in inside or not alone:
                    inside.add(target)
    return Module(module.header, module.computations, module.entry, tuple(loops), times, frozenset(inside))


def _plain(name: str) -> str:
    return name.removeprefix("%")


def _loop(module: Module, computation: Computation, one: Instruction, given: Mapping[str, int]) -> Loop:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest)
    turns = int(known[1]) if known else _counted(module, computation, one)
    if turns is None:
        for part, count in given.items():
            if part in one.op_name:
                return Loop(one.name, one.op_name, computation.name, count, True)
    return Loop(one.name, one.op_name, computation.name, turns)


def _counted(module: Module, computation: Computation, one: Instruction) -> int | None:
    """Turns of a loop that runs while a counter is below (or above, or not at) a constant; None for any other."""
    condition = module.computations[_plain(one.attribute("condition"))]
    body = module.computations[_plain(one.attribute("body"))]
    start = computation.instructions[one.operands[0]]
    if start.opcode != "tuple" or body.root.opcode != "tuple":
        return None
    test, values = condition.root, None
    holder = condition
    if test.opcode == "fusion":  # the comparison alone in a fusion, with the counter and the limit as its operands
        values = [_value(module, condition, name) for name in test.operands]
        holder = module.computations[test.called[0]]
        test = holder.root
    if test.opcode != "compare":
        return None
    left, right = (_value(module, holder, name, values) for name in test.operands)
    direction = test.attribute("direction")
    if not left or not right:
        return None

    def unchanged(side: tuple[int | None, int]) -> bool:
        return side[0] is None or _value(module, body, body.root.operands[side[0]]) == (side[0], 0)

    if unchanged(left):
        left, right = right, left
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    (counter, ahead), (carried, limit) = left, right
    if counter is None or not unchanged(right):
        return None
    first = _value(module, computation, start.operands[counter])
    after = _value(module, body, body.root.operands[counter])
    if carried is not None:  # the limit is carried by the loop: a constant before it?
        before = _value(module, computation, start.operands[carried])
        if not before or before[0] is not None:
            return None
        limit += before[1]
    if not first or first[0] is not None or not after or after[0] != counter or not after[1]:
        return None
    span, step = limit - first[1] - ahead, after[1]
    if direction in ("LE", "GE"):
        span += 1 if direction == "LE" else -1
    elif direction == "EQ" or (direction == "NE" and span % step):
        return None
    return max(0, ceil(span / step)) if (step > 0) == (direction in ("LT", "LE")) or direction == "NE" else None


def _value(
    module: Module, computation: Computation, name: str, given: list[tuple[int | None, int] | None] | None = None
) -> tuple[int | None, int] | None:
    """A scalar as (element of the loop's tuple or None, whole number added to it); None when it is something else.

    given  values of the operands, in a fused computation
    """
    one = computation.instructions[name]
    if one.opcode == "constant":
        return (None, int(one.literal)) if re.fullmatch(r"-?\d+", one.literal.strip()) else None
    if one.opcode == "parameter":
        return given[int(one.literal)] if given else None
    if one.opcode in _SAME:
        return _value(module, computation, one.operands[0], given)
    if one.opcode == "get-tuple-element":
        carried = computation.instructions[one.operands[0]].opcode == "parameter" and given is None
        return (int(one.attribute("index")), 0) if carried else None
    if one.opcode == "fusion":
        operands = [_value(module, computation, operand, given) for operand in one.operands]
        inner = module.computations[one.called[0]]
        return _value(module, inner, inner.root.name, operands)
    if one.opcode in ("add", "subtract"):
        left, right = (_value(module, computation, operand, given) for operand in one.operands)
        if left and right and (right[0] is None or (left[0] is None and one.opcode == "add")):
            sign = 1 if one.opcode == "add" else -1
            return (right[0] if left[0] is None else left[0], left[1] + sign * right[1])
    return None
