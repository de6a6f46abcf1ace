"""The commands of docs/start.md in a new environment without development packages, each timed.

python benchmarks/start_page.py
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grid import RESULTS, write_results

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def commands(page: str, python: str) -> list[list[str]]:
    """What the page asks for, after its first block, which installs: Python as one command, else a command a line."""
    found = []
    for language, text in FENCE.findall(page)[1:]:
        if language == "python":
            found.append([python, "-c", text])
        elif not language:
            found += [
                shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines() if line.strip()
            ]
    return found


def main() -> None:
    """Install from a wheel, then run the page."""
    lines: list[dict[str, Any]] = []

    def run(words: list[str], folder: Path, **more: str) -> None:
        began = time.monotonic()
        subprocess.run(words, cwd=folder, env={**os.environ, **more}, check=True, stdout=subprocess.DEVNULL)
        shown = " ".join(word if "\n" not in word else "..." for word in words)
        for place, name in ((sys.executable, "python"), (str(folder), "."), (str(ROOT), "SOURCE")):
            shown = shown.replace(place, name)
        lines.append({"command": shown, "seconds": round(time.monotonic() - began, 1)})
        print(lines[-1], file=sys.stderr)

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        run([sys.executable, "-m", "venv", "env"], work)
        python = str(work / "env" / "bin" / "python")
        run([python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", "wheels", str(ROOT)], work)
        (wheel,) = (work / "wheels").iterdir()
        constraints = str(ROOT / "constraints.txt")
        run([python, "-m", "pip", "install", "-q", "--constraint", constraints, str(wheel)], work)
        path = os.pathsep.join([str(work / "env" / "bin"), os.environ["PATH"]])
        installed = len(lines)
        for words in commands((ROOT / "docs" / "start.md").read_text(encoding="utf-8"), python):
            run(words, work, PATH=path, BOLUS_CACHE=str(work / "cache"))
    took = {"install": lines[:installed], "page": lines[installed:]}
    write_results(
        RESULTS / "start_page.json",
        lines,
        **{name: sum(each["seconds"] for each in part) for name, part in took.items()},
    )


if __name__ == "__main__":
    main()
