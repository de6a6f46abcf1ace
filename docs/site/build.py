"""Build the documentation as a site, build/docs/site, without a network; any warning fails it.

The pages lie in docs/ so that they can be read where the code is. They are copied with their links turned to where the
pages are on the site, which also has README, CONTRIBUTING, CHANGELOG and a page of the API. Then zensical builds; it
fails on a link or an anchor that leads nowhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bolus

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "docs"
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
API = """# Python API

Every verb of the command line is a function, every loss a function of tensors. Written from the docstrings, whose
examples are run by the tests.
"""
CHAPTERS = {
    "Verbs": (
        "scan", "check", "plan", "pretrain", "dry_run", "embed", "evaluate", "evaluate_change", "evaluate_retrieve",
        "evaluate_segment", "evaluate_elsewhere", "evaluate_audit", "ablate", "predict",
    ),
    "Losses": (
        "infonce", "varcov_loss", "supremix_loss", "score_contrast_loss", "rank_n_contrast_loss", "chronocon_loss",
        "grad_filter", "grad_mitigator",
    ),
}  # fmt: skip


def shown() -> dict[Path, str]:
    """Every file of the site that lies in the repository, and its place among the pages."""
    found = {ROOT / name: place for name, place in TOP.items()}
    inside = [path for path in (ROOT / "docs").rglob("*") if path.suffix in {".md", ".svg", ".png"}]
    found |= {path: path.relative_to(ROOT / "docs").as_posix() for path in inside}
    found |= {path: f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    return found


def turned(text: str, page: Path, places: dict[Path, str]) -> str:
    """A page with its links as they are among the pages of the site.

    Raises:
        ValueError: a link to a file that the site does not have.
    """
    up = "../" * places[page].count("/")

    def turn(match: re.Match[str]) -> str:
        target, mark, anchor = match[1].partition("#")
        if not target or "://" in target:
            return match[0]
        path = (page.parent / target).resolve()
        if path not in places:
            raise ValueError(f"{page.relative_to(ROOT)}: expected a link to a file of the site, found {target}")
        return f"]({up}{places[path]}{mark}{anchor})"

    outside = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else re.sub(r"\]\(([^)\s]+)\)", turn, part) for part in outside)


def api() -> str:
    """The page of the API: a directive for every public name."""
    listed = {name for names in CHAPTERS.values() for name in names}
    rest = tuple(name for name in bolus.__all__ if name not in listed and not name.startswith("__"))
    chapters = {**CHAPTERS, "Everything else": rest}
    parts = [API]
    for title, names in chapters.items():
        parts.append(f"## {title}\n")
        parts += [f"::: bolus.{name}\n    options:\n      heading_level: 3\n" for name in names]
    return "\n".join(parts)


def write_pages() -> None:
    """All pages anew, in build/docs/pages, and beside them what zensical reads."""
    pages, places = BUILD / "pages", shown()
    shutil.rmtree(pages, ignore_errors=True)
    for path, place in places.items():
        target = pages / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(turned(path.read_text(encoding="utf-8"), path, places), encoding="utf-8")
        else:
            shutil.copyfile(path, target)
    (pages / "api.md").write_text(api(), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("zensical.toml"), BUILD / "zensical.toml")


def drop_foreign_scripts(site: Path) -> None:
    """Take out of every page the script that zensical would fetch, which lets pages opened as files be searched."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r'<script src="https?:[^>]*></script>', "", text), encoding="utf-8")


def main() -> int:
    """Build; the exit code is that of zensical, or 1 where it, or the reader of docstrings, printed a warning."""
    write_pages()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "NO_COLOR": "1"}
    words = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(words, cwd=BUILD, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    print(said)
    drop_foreign_scripts(BUILD / "site")
    return done.returncode or int(re.search("warning|griffe", said, flags=re.IGNORECASE) is not None)


if __name__ == "__main__":
    sys.exit(main())
