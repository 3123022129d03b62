"""Figures of a compiled program, with loops multiplied: operations, memory traffic, kernels, cycles, arrays, donation.

  matmul_flops      2 for a multiplication and an addition, in matrix products and convolutions alone, on one chip. What
                    is computed again (remat) counts. Positions of a convolution that only meet padding do not: TPU
                    programs spell batched products as such convolutions. Kernels (custom calls) are black boxes
  host_bytes        sent to the host's memory and brought back by one chip (activations under train.remat=offload)
  hbm_bytes         read and written in main memory by one chip: operands and results of every instruction that is not
                    inside a fusion; of a slice only the slice. Values that the text places in VMEM are free. An
                    estimate: caches are not known, and what a kernel reads several times counts once
  estimated_cycles  TPU: the compiler's own schedule estimate of its fusions, a second opinion on time

XLA's `cost_analysis()` has the first two for one turn of each loop; tests hold them against it for unrolled programs.
Source: openxla/xla, xla/service/hlo_cost_analysis.cc (which positions of a convolution count).
"""

import re
from dataclasses import dataclass
from math import prod

from medjax.plan.hlo import Module
from medjax.plan.instructions import Array, Computation, Instruction, numbers

# they move nothing: names for values that exist, or work counted elsewhere
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "optimization-barrier", "copy-done", "slice-done", "async-done", "async-update"),
    *("dynamic-slice-done", "dynamic-update-slice-done"),
    *(
        "all-gather-done",
        "all-reduce-done",
        "collective-permute-done",
        "domain",
        "async-start",
        "iota",
        "add-dependency",
    ),
}
_SLICES = {"dynamic-slice", "slice", "gather"}
_VIEWS = {"bitcast", "reshape"}
_HOST = 5  # the memory space of the host
_HELD = {"AsyncCollectiveStart", "AsyncCollectiveDone"}  # marks, not kernels: so are the next, of the TPU compiler
_MARKS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked"} | _HELD

_NO_CYCLES = 2**40  # half an hour of a chip


@dataclass(frozen=True)
class Kernel:
    """Custom calls of one name.

    name    of the instructions without their number, as "splash_mha_fwd_residuals"
    target  as "tpu_custom_call"
    times   in a step
    """

    name: str
    target: str
    times: int


@dataclass(frozen=True)
class Donation:
    """Inputs whose memory the outputs take over.

    aliased   numbers of the entry's parameters that share memory with an output
    unused    numbers of parameters that were donated in vain: no output of their size took them
    bytes     of the aliased parameters on one chip
    """

    aliased: tuple[int, ...]
    unused: tuple[int, ...]
    bytes: int


def matmul_flops(module: Module) -> int:
    """Operations of all matrix products and convolutions in a step, on one chip."""
    return sum(times * flops_of(computation, one) for computation, one, times in module.steps(inside=True))


def flops_of(computation: Computation, one: Instruction) -> int:
    """Operations of one instruction executed once; 0 for what is no matrix product."""
    if one.opcode == "dot":
        left = computation.instructions[one.operands[0]].arrays[0]
        contracted = [left.dims[int(axis)] for axis in numbers(one.attribute("lhs_contracting_dims"))]
        return 2 * one.arrays[0].elements * prod(contracted)
    if one.opcode == "convolution":
        return _convolution(computation, one)
    if one.opcode == "custom-call" and (found := re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.rest)):
        left = computation.instructions[one.operands[0]].arrays[0]  # GPU: cuBLAS
        contracted = [left.dims[int(axis)] for axis in re.findall(r"\d+", found[1])]
        return 2 * one.arrays[0].elements * prod(contracted)
    return 0


def hbm_bytes(module: Module) -> int:
    """Bytes that one chip reads and writes in its main memory in a step."""
    return sum(times * traffic_of(module, computation, one) for computation, one, times in module.steps())


def traffic_of(module: Module, computation: Computation, one: Instruction) -> int:
    """Bytes that one instruction reads and writes in main memory, executed once; arrays as padded to their tiles."""
    if one.opcode in _FREE or _target(one) in _MARKS:
        return 0
    operands = [computation.instructions[name] for name in one.operands]
    if one.opcode == "fusion":
        return _fusion(module, one, operands)
    if one.opcode in _SLICES or one.opcode == "slice-start":
        piece = one.arrays[-1 if one.opcode == "dynamic-slice" else 0]
        if one.opcode == "slice-start":  # (source), piece, flag
            piece = one.arrays[len(operands)]
        return _size(piece, operands[0].arrays[0].space) + _size(piece)
    if one.opcode == "dynamic-slice-start":  # (source, places), piece, flag
        return _size(one.arrays[len(operands)]) + _size(one.arrays[len(operands)], operands[0].arrays[0].space)
    if one.opcode in ("dynamic-update-slice", "dynamic-update-slice-start"):
        return _size(operands[1].arrays[0]) + _size(operands[1].arrays[0], one.arrays[0].space)
    if one.opcode == "scatter":
        return 3 * sum(_size(array) for array in operands[-1].arrays)
    if one.opcode == "copy-start":  # destination, source, flag
        return _size(one.arrays[0]) + _size(operands[0].arrays[0])
    result = one.arrays
    if one.opcode.endswith("-start"):  # the result names the operands too
        held = sum(len(operand.arrays) for operand in operands)
        result = one.arrays if one.opcode == "all-reduce-start" else one.arrays[held : 2 * held]
    return sum(_size(array) for operand in operands for array in operand.arrays) + sum(_size(array) for array in result)


def host_bytes(module: Module) -> int:
    """Bytes that one chip sends to its host's memory and reads from there in a step, both together."""
    return sum(times * _over_pcie(computation, one) for computation, one, times in module.steps())


def estimated_cycles(module: Module) -> int:
    """Sum of the cycles that the TPU compiler expects of its fusions, in a step; 0 for other chips.

    Cycles of one core, and of all cores of a chip at once where they work as one device. Waiting for other chips, and
    kernels without an estimate, are not in it; the compiler's largest integer is what it writes where it has none.
    """
    return sum(
        times * int(found[1])
        for _, one, times in module.steps()
        if (found := re.search(r'"estimated_cycles":"(\d+)"', one.rest)) and int(found[1]) < _NO_CYCLES
    )


def kernels(module: Module) -> list[Kernel]:
    """Custom calls that a step executes, most frequent first; marks of the TPU compiler are left out."""
    counts: dict[tuple[str, str], int] = {}
    for _, one, times in module.steps(inside=True):
        target = _target(one)
        if target and target not in _MARKS:
            key = (re.sub(r"(\.\d+|\.clone)+$", "", one.name), target)
            counts[key] = counts.get(key, 0) + times
    return sorted((Kernel(*key, times) for key, times in counts.items()), key=lambda kernel: -kernel.times)


def arrays_with(module: Module, trailing: int, of: tuple[str, ...] = ()) -> list[Array]:
    """Arrays in memory whose last axis, as written or as stored, has a size; distinct, largest first.

    trailing  the size, as that of the vocabulary on one chip
    of        opcodes to look at; empty for all that are not inside a fusion
    Parameters are among them: an assertion on activations compares with their size.
    """
    found = {
        array
        for _, one, _ in module.steps()
        if one.opcode not in ("tuple", "while") and (not of or one.opcode in of)
        for array in one.arrays
        if array.dims and (array.dims[-1] == trailing or (array.order and array.dims[array.order[0]] == trailing))
    }
    return sorted(found, key=lambda array: (-array.bytes, array.dims, array.dtype, array.space))


def donation(module: Module) -> Donation:
    """Which inputs lend their memory to outputs (`donate_argnums`)."""
    aliased = {int(number) for number in re.findall(r"\}: \((\d+), \{", _header(module, "input_output_alias"))}
    unused = {int(number) for number in re.findall(r"\((\d+), \{", _header(module, "buffer_donor"))}
    parameters = module.computations[module.entry].parameters()
    return Donation(
        tuple(sorted(aliased)), tuple(sorted(unused - aliased)), sum(parameters[number].bytes for number in aliased)
    )


def _over_pcie(computation: Computation, one: Instruction) -> int:
    """Bytes that one instruction moves between the memories of chip and host, executed once."""
    opcode = one.opcode.removesuffix("-start")
    if opcode not in ("copy", "dynamic-slice", "dynamic-update-slice"):
        return 0
    operands = [computation.instructions[name].arrays[0] for name in one.operands]
    source, result = operands[0], one.arrays[0]  # a start's type: of a copy result first, of the others operands first
    if opcode == "dynamic-slice":
        result = moved = one.arrays[len(operands) if one.opcode != opcode else 0]
    elif opcode == "dynamic-update-slice":
        source = moved = operands[1]
    else:
        moved = source
    return moved.padded_bytes if (source.space == _HOST) != (result.space == _HOST) else 0


def _header(module: Module, name: str) -> str:
    """The text between the outer braces of a field of the module's first line."""
    rest = module.header.partition(f"{name}={{")[2]
    depth = 1
    for place, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if not depth:
            return rest[:place]
    return ""


def _size(array: Array, space: int | None = None) -> int:
    """Padded bytes if the array, or another one at that place, lies in main memory."""
    return array.padded_bytes if (array.space if space is None else space) == 0 else 0


def _fusion(module: Module, one: Instruction, operands: list[Instruction]) -> int:
    """Traffic of a fusion: operands read as far as they are used, the result written as far as it changes."""
    inner = module.computations[one.called[0]]
    total = 0
    changed = _updates(inner)
    for number, parameter in inner.parameters().items():
        total += 0 if parameter.name in changed else _read(module, inner, parameter, operands[number].arrays)
    roots = [inner.root]
    if inner.root.opcode == "tuple":
        roots = [inner.instructions[name] for name in inner.root.operands]
    if any(_target(root) in _HELD for root in roots):
        return total  # what a collective carries counts where it starts, as its operand
    for place, root in enumerate(roots):
        root = _behind_views(inner, root)
        if root.name in changed:
            total += _size(changed[root.name].arrays[0], one.arrays[place].space)
        else:
            total += sum(_size(array) for array in (one.arrays if len(roots) == 1 else one.arrays[place : place + 1]))
    return total


def _updates(inner: Computation) -> dict[str, Instruction]:
    """Slices that a fusion writes into a parameter in place, by the name of the parameter and that of the update."""
    found = {}
    for other in inner.instructions.values():
        if other.opcode in ("dynamic-update-slice", "scatter"):
            target = _behind_views(inner, inner.instructions[other.operands[0]])
            if target.opcode == "parameter":
                update = inner.instructions[other.operands[1 if other.opcode == "dynamic-update-slice" else -1]]
                found[target.name] = found[other.name] = update
    return found


def _behind_views(inner: Computation, one: Instruction) -> Instruction:
    while one.opcode in _VIEWS and one.operands:
        one = inner.instructions[one.operands[0]]
    return one


def _read(module: Module, inner: Computation, parameter: Instruction, arrays: tuple[Array, ...]) -> int:
    """Bytes that a fusion, and fusions in it, read of one operand: the slices alone where nothing else touches it."""
    whole = sum(_size(array) for array in arrays)
    if not whole:
        return 0
    users: dict[str, list[Instruction]] = {}
    for other in inner.instructions.values():
        for name in other.operands:
            users.setdefault(name, []).append(other)
    read, seen = 0, [parameter]
    while seen:
        current = seen.pop()
        for other in users.get(current.name, []):
            if other.opcode in _SLICES and other.operands[0] == current.name:
                read += sum(array.padded_bytes for array in other.arrays)
            elif other.opcode in _VIEWS or "output_to_operand_aliasing={{}: (0, {})}" in other.rest:
                seen.append(other)  # the second: the same array in tiles of another size
            elif other.opcode == "fusion":
                nested = module.computations[other.called[0]]
                for place, name in enumerate(other.operands):
                    if name == current.name:
                        read += _read(module, nested, nested.parameters()[place], arrays)
            elif _target(other) not in _HELD:
                return whole
    return min(read, whole)


def _target(one: Instruction) -> str:
    return one.attribute("custom_call_target").strip('"') if one.opcode == "custom-call" else ""


def _convolution(computation: Computation, one: Instruction) -> int:
    """2 x batch x outputs x inputs x the pairs of output position and kernel position that meet an input."""
    left, kernel = (computation.instructions[name].arrays[0] for name in one.operands[:2])
    inputs, weights, outputs = re.split(r"_|->", one.attribute("dim_labels"))
    window = dict(re.findall(r"(\w+)=(\S+)", one.attribute("window")))
    axes = [letter for letter in inputs if letter.isdigit()]
    pairs = 1
    for axis in axes:
        place = int(axis)  # the window counts axes by their number, wherever they lie

        def of(name: str, usual: int, place: int = place) -> int:
            return int(window[name].split("x")[place]) if name in window else usual

        low = int(window["pad"].split("x")[place].split("_")[0]) if "pad" in window else 0
        pairs *= _meetings(
            out=one.arrays[0].dims[outputs.index(axis)],
            kernel=kernel.dims[weights.index(axis)],
            size=left.dims[inputs.index(axis)],
            stride=of("stride", 1),
            low=low,
            spread=of("lhs_dilate", 1),
            apart=of("rhs_dilate", 1),
        )
    groups = int(one.attribute("batch_group_count") or 1)
    batch = left.dims[inputs.index("b")] // groups
    return 2 * batch * one.arrays[0].dims[outputs.index("f")] * kernel.dims[weights.index("i")] * pairs


def _meetings(*, out: int, kernel: int, size: int, stride: int, low: int, spread: int, apart: int) -> int:
    """Pairs (output position, kernel position) along one axis that meet an element of the input, not padding."""
    count = 0
    for tap in range(kernel):
        # position of the tap under output 0; outputs move by the stride; elements lie `spread` apart
        first = tap * apart - low
        count += sum(
            1 for place in range(out) if (at := first + place * stride) % spread == 0 and 0 <= at // spread < size
        )
    return count
