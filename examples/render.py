"""Run the examples and write each as a page of the documentation, with what it prints and draws.

python examples/render.py [xray] [fundus] [cardiac]    # two minutes each on two idle cores

An example is a script. `# %%` begins a step: comments, which become text, then code. What a step prints stands below.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
import time
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "examples"
NAMES = ("xray", "fundus", "cardiac")


def steps(script: str) -> tuple[str, list[tuple[str, str]]]:
    r"""The title with its introduction, and every step as text and code.

    >>> steps('"Title.\n\nWords."\n\n# %%\n# Two lines\n# of text.\n\nx = 1\n')
    ('"Title.\n\nWords."', [('Two lines\nof text.', 'x = 1')])
    """
    opening, *cells = re.split(r"^# %%\n", script, flags=re.MULTILINE)
    found = []
    for cell in cells:
        words = re.match(r"(?:#.*\n)*", cell)
        assert words is not None
        said = re.sub(r"^# ?", "", words[0], flags=re.MULTILINE)
        found.append((said.strip(), cell[words.end() :].strip()))
    return opening.strip(), found


def page(name: str, printed: list[str]) -> str:
    """The page of an example; where `printed` is empty, without what its steps print."""
    opening, cells = steps((HERE / f"{name}.py").read_text(encoding="utf-8"))
    title, _, introduction = opening.strip('"').strip().partition("\n\n")
    link = (
        f"The script: [examples/{name}.py](../../examples/{name}.py). Written with its output by `examples/render.py`."
    )
    parts = [f"# {title.rstrip('.')}", introduction, link]
    for number, (said, code) in enumerate(cells):
        parts += [said, f"```python\n{code}\n```"]
        if printed and printed[number].strip():
            parts.append(f"```\n{printed[number].rstrip()}\n```")
        drawn = re.findall(r'\.save\("([\w-]+\.png)"\)', code)
        parts += [f"![What the step draws]({each})" for each in drawn]
    return "\n\n".join(part for part in parts if part) + "\n"


def run(name: str) -> tuple[list[str], float]:
    """What every step prints, and how many seconds all of them took; pictures go beside the page."""
    _, cells = steps((HERE / f"{name}.py").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": name}
    printed, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for _, code in cells:
            with redirect_stdout(io.StringIO()) as said:
                exec(compile(code, f"{name}.py", "exec"), names)
            printed.append(said.getvalue())
        for picture in Path(folder).glob("*.png"):
            shutil.copyfile(picture, PAGES / picture.name)
    return printed, time.monotonic() - began


def main() -> None:
    """Render the examples that are named, or all."""
    PAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or NAMES:
        printed, seconds = run(name)
        (PAGES / f"{name}.md").write_text(page(name, printed), encoding="utf-8")
        print(f"{name}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
