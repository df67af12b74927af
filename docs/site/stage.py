"""Copies what the site shows into build/site-source, which mirrors the repository; make docs calls it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "build" / "site-source"
SHOWN = ("*.md", "LICENSE", "docs/**/*", "benchmarks/*.md", "models/artifacts/*.md")


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    for pattern in SHOWN:
        for path in ROOT.glob(pattern):
            if path.is_file() and path.suffix in (".md", ".png", ".yml", ""):
                copy(path)
    # What the documents link to beside themselves, such as pictures and models.
    for page in list(TARGET.rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:\s]+)", page.read_text(encoding="utf-8")):
            linked = (ROOT / page.relative_to(TARGET)).parent / link
            if linked.is_file():
                copy(linked.resolve())


def copy(path: Path) -> None:
    place = TARGET / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


if __name__ == "__main__":
    main()
