"""What the site does beyond its builder: formulas without a script, and examples of docstrings as code."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert


def draw(source: str, *_: Any, **__: Any) -> str:
    """A block of LaTeX as MathML, which browsers draw themselves; an empty line begins the next formula."""
    parts = [part.strip() for part in source.strip().split("\n\n")]
    return "\n".join(f"<p>{convert(part, display='block')}</p>" for part in parts)


class Examples(Extension):  # type: ignore[misc]
    """Docstrings here say Example; griffe knows the section by its plural."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every function and class that is read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
