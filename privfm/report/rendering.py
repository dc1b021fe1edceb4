"""Templates filled in: pages that load nothing, and run no script."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from privfm import __version__
from privfm.dp.figures import figure
from privfm.report.words import short, size

__all__ = ["rendered"]


def rendered(template: str, **values: Any) -> str:
    """Return a page as HTML; whatever is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("privfm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, short=short, figure=figure)
    style, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    return environment.get_template(template).render(
        version=__version__,
        style=Markup(style),  # noqa: S704 - our own file
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        **values,
    )
