"""Hostile files read in a process of its own, with the seconds and the memory that each takes."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hostile import Hostile, make_files

LIMIT = 20.0  # seconds of the processor for one file
WAIT = 120.0  # seconds on the clock, on a machine that has other work to do
ADDRESSES = 6 * 2**30  # bytes that the process may ask for at most
GIB = 2**30
SAID = ("read", "refused", "foreign", "hung", "crashed")


class Outcome(NamedTuple):
    """What became of one file.

    Args:
        file: it.
        said: `read`, `refused`, `foreign` (an exception that is not of bolus), `hung` or `crashed`.
        seconds: of the processor that it took; on the clock, where it hung.
        peak: bytes that the process held at most while it was read, those of its own included; 0 where not known.
        changed: share of the values that are others than in the intact file, where both were read; else 0.
        message: of the exception.
    """

    file: Hostile
    said: str
    seconds: float
    peak: int
    changed: float
    message: str


def read_hostile(files: Iterable[Hostile]) -> list[Outcome]:
    """Read each file as a cohort's images are read, one after another; whoever hangs or crashes is replaced."""
    outcomes, child = [], _start()
    for file in files:
        began = time.monotonic()
        child.stdin.write(json.dumps([str(file.path), file.intact]) + "\n")
        child.stdin.flush()
        there, _, _ = select.select([child.stdout], [], [], WAIT)
        line = child.stdout.readline() if there else ""
        if line:
            outcomes.append(Outcome(file, **json.loads(line)))
            continue
        child.kill()
        said = "crashed" if there else "hung"
        outcomes.append(Outcome(file, said, time.monotonic() - began, 0, 0.0, ""))
        child = _start()
    child.stdin.close()
    child.wait()
    return outcomes


def torture(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """The figures of all hostile files of a seed, made in an empty folder; for a table.

    Returns:
        `files`, `read`, `refused`, `foreign`, `hung`, `crashed`; `worst_seconds`, `worst_gib`; `silent`, kind ->
        (damaged files of which more than a twentieth of the values changed and that were read, damaged files).
    """
    return figures_of(read_hostile(make_files(folder, seed=seed)))


def figures_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """As `torture`."""
    counts = {said: sum(each.said == said for each in outcomes) for said in SAID}
    silent: dict[str, tuple[int, int]] = {}
    for each in outcomes:
        if each.file.attack in ("truncated", "flipped", "zeroed"):
            wrong, number = silent.get(each.file.kind, (0, 0))
            silent[each.file.kind] = (wrong + (each.said == "read" and each.changed > 0.05), number + 1)
    return {
        "files": len(outcomes),
        **counts,
        "worst_seconds": round(max(each.seconds for each in outcomes), 2),
        "worst_gib": round(max(each.peak for each in outcomes) / GIB, 2),
        "silent": silent,
    }


def _start() -> Any:
    command = [sys.executable, __file__]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def main() -> None:
    """Read the files that standard input names, and answer each with a line."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    known: dict[str, list[Any]] = {}
    for line in sys.stdin:
        path, intact = json.loads(line)
        _forget_peak()
        began = time.process_time()
        said, found, message = _read(Path(path))
        seconds, peak = time.process_time() - began, _peak()
        changed = 0.0
        if intact and said == "read" and not message:  # of frames that are left out, it was told
            if intact not in known:
                known[intact] = _read(Path(intact))[1]
            changed = _changed(found, known[intact])
        found = []  # or it would be held beside the next one
        answer = {"said": said, "seconds": seconds, "peak": peak, "changed": changed, "message": message}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _read(path: Path) -> tuple[str, list[Any], str]:
    """How it went, the arrays of at most 20 frames, and what was said."""
    from bolus.data.readers.frames import all_frames, read_frames
    from bolus.errors import BolusError

    arrays, message = [], ""
    try:
        for image in read_frames(path, all_frames(path)[:20]):
            if isinstance(image, BolusError):
                message = str(image)
            else:
                arrays.append(image.array)
    except Exception as error:
        return "foreign", [], f"{type(error).__name__}: {error}"
    return ("read" if arrays else "refused"), arrays, message


def _changed(found: list[Any], expected: list[Any]) -> float:
    """The share of values that are not those of the intact file, by more than 1 % of their span."""
    if [each.shape for each in found] != [each.shape for each in expected]:
        return 1.0
    span = max(float(each.max() - each.min()) for each in expected)
    return max(float((abs(a - b) > 0.01 * span).mean()) for a, b in zip(found, expected, strict=True))


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    """Bytes that this process held at most since `_forget_peak`; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
