"""The page: one HTML file that loads nothing, runs only its own script, and shows text of tables as text."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from importlib import resources
from typing import Any

from bolus import __version__
from bolus.reporting.blocks import Section
from bolus.reporting.wording import straight

REFRESH = 10  # seconds after which a watched page loads itself again


def render(title: str, sections: Sequence[Section], *, pictures: bool = False, refresh: bool = False) -> str:
    """The whole page.

    Nothing may be loaded from anywhere (Content-Security-Policy: `default-src 'none'`), and of scripts and styles only
    the two whose hashes the page states are run. Pictures are data within the file, and only allowed where there are
    any.

    Args:
        title: of the page.
        sections: in their order.
        pictures: whether the page holds pictures of patients.
        refresh: whether it loads itself again every 10 seconds, as while a run is watched.

    >>> page = render("a & b", [Section("s", "Section", "Why <b>?")])
    >>> "a &amp; b" in page, "Why &lt;b&gt;?" in page
    (True, True)
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    style, script = _template("style.css"), _template("script.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            f"img-src {'data:' if pictures else chr(39) + 'none' + chr(39)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        finalize=_straight,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    read = set[str]()

    def fresh(reading: str) -> bool:
        """Whether it was not said before; what was is not printed again."""
        new = reading not in read
        read.add(reading)
        return new

    facts: dict[str, Any] = {
        "fresh": fresh,
        "title": title,
        "sections": sections,
        "style": Markup(style),
        "script": Markup(script),
        "policy": policy,
        "refresh": REFRESH if refresh else None,
        "version": __version__,
        "pictures": pictures,
    }
    return environment.get_template("page.html").render(facts)


def _straight(value: Any) -> Any:
    """Whatever a template shows that is not markup, without marks of direction, and not without end."""
    from markupsafe import Markup

    return straight(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _template(name: str) -> str:
    return (resources.files("bolus.reporting") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names a script or style that is within the page."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
