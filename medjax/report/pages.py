"""Pages of one file from the templates beside this module: they load nothing, and text is escaped.

Every template fills the blocks of page.html (title, style, body), which has the head that all share and what browsers
may do with the page: no script runs, unless a page names one in a policy of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medjax.report import drawing

POLICY = Markup("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the page; a name that the template uses and `values` lacks is an error."""
    page = Environment(
        loader=PackageLoader("medjax.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(percent=drawing.percent, number=drawing.number, counted=drawing.counted)
    return page.get_template(template).render({"policy": POLICY, **values})


def flat(value: Any, path: str = "", shown: Callable[[Any], str] = str) -> Iterator[tuple[str, str]]:
    """Yield dotted key and text of every leaf."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key), shown)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        yield path, ", ".join(map(str, value))
    else:
        yield path, "none" if value in (None, {}, [], ()) else shown(value)


def compact(value: Any) -> str:
    """A number of a record with its thousands parted and four digits, other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
