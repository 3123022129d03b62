"""Rules as a checkpoint stores them: plain JSON objects with exactly the fields of their class."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def checked_fields(cls: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """The value, if it has the fields of the dataclass cls and no other; else ValueError naming them."""
    known = {item.name for item in fields(cls)}
    if wrong := known ^ set(value):
        raise ValueError(
            f"{cls.__name__}: {', '.join(sorted(wrong))} missing or unknown, expected exactly "
            f"{', '.join(sorted(known))}; the file was written by another version of medjax."
        )
    return dict(value)
