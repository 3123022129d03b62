"""What the chips of a program send one another in a step: kind, bytes, mesh axes, times.

Bytes that one chip sends (and receives) in a collective over a group of n, on a ring, of an array of B bytes:

  all-gather      B (n - 1) / n       B of the gathered array
  reduce-scatter  B (n - 1) / n       B of the array before it is scattered
  all-reduce      2 B (n - 1) / n     a reduce-scatter and an all-gather
  all-to-all      B (n - 1) / n       B of what a chip holds
  permute         B                   by chips that send to another; B of what a chip holds

The mesh axes of a collective are those along which the members of its groups differ, partition ids counting through
the mesh in row-major order, as in `jax.sharding.Mesh.devices`.

Asynchronous ones have a start and a done with other work between them. On TPU such a collective is spread over several
fusions that all mention it; the one that holds AsyncCollectiveStart counts. A fusion named all-reduce-scatter is a
reduce-scatter.

Between slices TPU programs send and receive through their hosts, and their partition ids count within one slice. Such
transfers are collectives along the first mesh axis, over as many members as there are slices, with `network` set.

Sources: J. Austin et al., "How to Scale Your Model", part 3 (costs on a ring); openxla/xla, xla/hlo/ir
(replica groups in three spellings).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np

from medjax.plan.hlo import Module
from medjax.plan.instructions import Array, Computation, Instruction, numbers

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_TRANSFER = "_xla_megascale_transfer_type"


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    payload_bytes       of the whole array, as in the table above; several arrays sent together are added
    moved_bytes         sent by one chip each time: the busiest, where they differ
    largest_array_bytes of the result on one chip
    axes                of the mesh, in its order; empty when nothing is sent
    group               chips that take part together
    times               in one step, loops multiplied
    network             whether it goes between slices, over the hosts' network
    """

    name: str
    kind: str
    payload_bytes: int
    moved_bytes: float
    largest_array_bytes: int
    axes: tuple[str, ...]
    group: int
    times: int
    op_name: str
    network: bool = False

    @property
    def step_bytes(self) -> float:
        """Sent by one chip in a step."""
        return self.moved_bytes * self.times


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective that a step executes, in the order of the text.

    mesh  sizes by axis in the mesh's order, as `Mesh.shape`; of several slices the first axis joins them

    Raises ValueError when the mesh has another number of devices than the program.
    """
    first = next(iter(mesh))
    slices, rest = divmod(prod(mesh.values()), module.partitions)
    sent = [one for _, one, _ in module.steps() if _TRANSFER in one.rest]
    if rest or slices == 0 or mesh[first] % slices or (slices > 1) != bool(sent):
        sizes = ", ".join(f"{name}={size}" for name, size in mesh.items())
        raise ValueError(
            f"collectives: got a mesh of {prod(mesh.values())} devices ({sizes}), expected {module.partitions} as the "
            "program was compiled for; pass the shape of that mesh."
        )
    mesh = {**mesh, first: mesh[first] // slices}
    started = {
        one.attribute("channel_id")
        for computation in module.computations.values()
        for one in computation.instructions.values()
        if _is_start(computation, one)
    }
    found = []
    seen: set[tuple[str, str]] = set()
    for computation, one, times in module.steps(inside=True):
        kind = one.opcode.removesuffix("-start")
        if one.opcode == "recv" and _TRANSFER in one.rest:
            found.append(_between(computation, one, first, slices, times))
        if kind not in KINDS:
            continue
        if computation.name in module.inside:
            starts = _is_start(computation, one)
            mention = (one.attribute("channel_id"), "" if starts else _executing(module, computation.name))
            if (mention[0] in started and not starts) or (mention in seen and not starts):
                continue
            seen.add(mention)
            if computation.name.startswith("all-reduce-scatter") and kind == "all-reduce":
                kind = "reduce-scatter"
        found.append(
            replace(
                _measured(module, computation, one, kind, mesh),
                times=times,
                op_name=one.op_name or next((caller.op_name for _, caller in module.users(computation.name)), ""),
            )
        )
    return found


def by_kind(found: list[Collective]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Bytes that one chip sends in a step, by kind and mesh axes, largest first; only what is sent at all.

    Kinds between slices are apart, as "all-reduce between slices".
    """
    sums: dict[tuple[str, tuple[str, ...]], float] = {}
    for one in found:
        if one.step_bytes:
            key = (one.kind + (" between slices" if one.network else ""), one.axes)
            sums[key] = sums.get(key, 0) + one.step_bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def groups_of(text: str, partitions: int) -> np.ndarray:
    """Partition ids of the groups of a collective: [groups, members] int.

    text  as after replica_groups=: "{{0,1},{2,3}}", "[2,2]<=[2,2]T(1,0)" or "mesh['x'=2,'y'=2] {'x'}"; empty or "{}"
          for all partitions in one group

    Raises ValueError for another spelling, and for groups of unequal sizes.
    """
    if found := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, sizes = numbers(found[1]), numbers(found[2])
        ids = np.arange(prod(sizes)).reshape(sizes)
        return (ids.transpose(numbers(found[3])) if found[3] else ids).reshape(shape)
    if text.startswith("mesh["):
        return _mesh_groups(text)
    members = [numbers(group) for group in re.findall(r"\{([\d,\s]+)\}", text if text.startswith("{{") else "")]
    if not members and re.fullmatch(r"[{}\s]*", text):
        return np.arange(partitions)[None]
    if not members or len({len(group) for group in members}) > 1:
        raise ValueError(
            f"replica_groups: got {text!r}, expected equal groups as {{{{0,1}},{{2,3}}}}, [2,2]<=[4] or mesh[…]; this "
            "spelling is new: add it here."
        )
    return np.asarray(members)


def _mesh_groups(text: str) -> np.ndarray:
    """Groups along some axes of a mesh that the text spells out, with its order of devices where that is not 0, 1, …

    An axis may be cut: 'x':(2)4 is a part of size 4 of axis x with a part of size 2 before it.
    """
    head, _, used = text.partition("]")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", head)}
    used = used.strip()
    ids = np.arange(prod(sizes.values()))
    if found := re.match(r",\s*device_ids=\(?(\[[\d,]+\](?:<=\[[\d,]+\])?(?:T\([\d,]+\))?|[\d,]+)\)?\s*", used):
        ids = _device_order(found[1])
        used = used[found.end() :]
    parts: list[tuple[str, int, int]] = []  # name, first of its sizes, size: every axis cut at the ends of its parts
    cuts = {name: [1, size] for name, size in sizes.items()}
    wanted = []
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", used):
        first, count = (int(before), int(size)) if size else (1, sizes[name])
        cuts[name] += [first, first * count]
        wanted.append((name, first, first * count))
    for name, places in cuts.items():
        places = sorted(set(places))
        parts += [(name, low, high) for low, high in pairwise(places)] or [(name, 1, 1)]
    ids = ids.reshape([high // low for _, low, high in parts])
    along = [
        place
        for place, (name, low, high) in enumerate(parts)
        if any(name == other and first <= low and high <= last for other, first, last in wanted)
    ]
    across = [place for place in range(len(parts)) if place not in along]
    members = prod(ids.shape[place] for place in along)
    return ids.transpose([*across, *along]).reshape(-1, members)


def _device_order(text: str) -> np.ndarray:
    found = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", text)
    if not found:
        return np.asarray(numbers(text))
    sizes = numbers(found[2] or found[1])
    ids = np.arange(prod(sizes)).reshape(sizes)
    return (ids.transpose(numbers(found[3])) if found[3] else ids).reshape(-1)


def _replica_groups(one: Instruction) -> str:
    """The text after replica_groups=: it holds spaces and brackets of several kinds."""
    found = re.search(r"(?:^|, )replica_groups=(\{\{.*?\}\}|\{\}|\[.*?(?=, [a-z_]+=|$)|mesh\[.*?\}(?=, |$))", one.rest)
    return found[1] if found else ""


def _measured(
    module: Module, computation: Computation, one: Instruction, kind: str, mesh: Mapping[str, int]
) -> Collective:
    sent = [array for name in one.operands for array in computation.instructions[name].arrays]
    result = list(one.arrays)
    if one.opcode.endswith("-start"):  # the result holds the operands too, and flags after the results
        result = result[len(sent) : 2 * len(sent)] if one.opcode != "all-reduce-start" else result
    if kind == "collective-permute":
        pairs = np.asarray(
            [numbers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", one.attribute("source_target_pairs"))]
        )
        apart = pairs[pairs[:, 0] != pairs[:, 1]] if pairs.size else pairs.reshape(0, 2)
        axes = _axes(apart, mesh)
        payload = sum(array.bytes for array in sent)
        moved: float = payload if len(apart) else 0
        group = 2 if len(apart) else 1
    else:
        groups = groups_of(_replica_groups(one), module.partitions)
        group = groups.shape[1]
        axes = _axes(groups, mesh)
        payload = sum(array.bytes for array in (sent if kind in ("reduce-scatter", "all-reduce") else result))
        factor = {"all-reduce": 2.0, "collective-broadcast": group / max(1, group - 1)}.get(kind, 1.0)
        moved = payload * factor * (group - 1) / group
    if kind == "reduce-scatter" and one.opcode == "all-reduce":
        result = [Array(array.dtype, (array.elements // group,)) for array in result]
    largest = max((array.bytes for array in result), default=0)
    return Collective(one.name, kind, payload, moved, largest, axes, group, 1, one.op_name)


def _between(computation: Computation, one: Instruction, axis: str, slices: int, times: int) -> Collective:
    """A transfer between slices, from its recv, whose first array is the result; its send has the same rendezvous."""
    match = re.search(r'rendezvous="([^"]*)"', one.rest)
    send = next(
        other
        for other in computation.instructions.values()
        if other.opcode == "send" and match and match[0] in other.rest
    )
    kind = re.search(rf'{_TRANSFER}="(\w+)"', one.rest)
    name = kind[1].lower().replace("_", "-") if kind else ""
    payload = max(one.arrays[0].bytes, send.arrays[0].bytes)
    factor = {"all-reduce": 2.0, "one-to-one": slices / (slices - 1)}.get(name, 1.0)
    return Collective(
        one.name,
        {"one-to-one": "collective-permute"}.get(name, name),
        payload,
        payload * factor * (slices - 1) / slices,
        one.arrays[0].bytes,
        (axis,),
        slices,
        times,
        send.op_name,
        network=True,
    )


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Mesh axes along which the members of any group differ; groups [groups, members] of partition ids."""
    if not groups.size:
        return ()
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)
    differ = (places != places[:, :1]).any((0, 1))
    return tuple(name for name, differs in zip(mesh, differ, strict=True) if differs)


def _is_start(computation: Computation, one: Instruction) -> bool:
    """Whether a collective in a fusion is what an AsyncCollectiveStart there starts."""
    return one.opcode in KINDS and any(
        other.attribute("custom_call_target") == '"AsyncCollectiveStart"' and one.name in other.operands
        for other in computation.instructions.values()
        if other.opcode == "custom-call"
    )


def _executing(module: Module, name: str) -> str:
    """The computation, itself no part of an instruction, that executes a fused one."""
    while name in module.inside and (users := module.users(name)):
        name = users[0][0].name
    return name
