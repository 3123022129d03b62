"""The largest size of something that fits: by a line through few measurements, each of them a compilation.

What a program of the engine needs of a device is a line in its rows, its sequences or their length, but for padding:
weights, then keys, values and temporaries a token. Two measurements give a line, the line a size; that is measured too
and corrects the line, until a size fits of which the line says that the next does not, or the next was measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

_MOST_TRIES = 8


@dataclass(frozen=True)
class Capacity:
    """The largest size that was measured and fits.

    what    the size's name and unit, as "tokens of a row"
    size    0 where the smallest does not fit
    most    beyond which nothing was tried
    tried   bytes by size, as measured
    """

    what: str
    size: int
    most: int
    tried: dict[int, int] = field(default_factory=dict)

    @property
    def slope(self) -> float:
        """Bytes for one more, between the two largest sizes measured; 0 with one."""
        sizes = sorted(self.tried)[-2:]
        return (self.tried[sizes[1]] - self.tried[sizes[0]]) / (sizes[1] - sizes[0]) if len(sizes) == 2 else 0.0


def capacity(what: str, needed: Callable[[int], int], *, room: float, start: int, step: int, most: int) -> Capacity:
    """Find the largest multiple of `step` up to `most` that needs no more than `room` bytes.

    needed  measures a size, in bytes; called _MOST_TRIES times at most, each time with another size
    start   where to begin, the size that the user named

    Raises ValueError when there is no multiple of step up to most.
    """
    last = most // step
    if last < 1:
        raise ValueError(
            f"{what}: got {most} at most, expected {step} or more, of which sizes are multiples; raise it."
        )
    tried: dict[int, int] = {}

    def measure(count: int) -> None:
        tried[count] = needed(count * step)

    measure(min(max(start // step, 1), last))
    while len(tried) < _MOST_TRIES:
        fitting = max((count for count, size in tried.items() if size <= room), default=0)
        above = min((count for count, size in tried.items() if size > room), default=last + 1)
        if above - fitting <= 1:
            break
        guess = _guess(tried, room)
        if fitting and guess <= fitting and len(tried) > 1:
            break
        measure(min(max(guess, fitting + 1), above - 1))
    largest = max((count for count, size in tried.items() if size <= room), default=0)
    return Capacity(what, largest * step, most, {count * step: size for count, size in tried.items()})


def _guess(tried: dict[int, int], room: float) -> int:
    """Where the line through two measurements meets the room: those on both sides of it, else the last two."""
    fitting = sorted(count for count, size in tried.items() if size <= room)
    above = sorted((count for count, size in tried.items() if size > room), reverse=True)
    points = [*fitting[-1:], *above[-1:]] if fitting and above else (fitting or above)[-2:]
    low, high = min(points), max(points)
    if tried[low] == tried[high]:  # one point, or padding hides the growth
        factor = 2 if low == high else 8
        return high * factor if fitting else low // factor
    return int(low + (room - tried[low]) * (high - low) / (tried[high] - tried[low]))
