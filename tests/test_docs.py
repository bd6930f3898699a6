"""The pages say what the files of numbers say, and name what is there."""

import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import build


def test_every_table_is_written_from_its_numbers():
    pages = build.pages()
    assert len(pages) == 2
    for path, text in pages.items():
        assert text == path.read_text(encoding="utf-8"), f"{path}: run python docs/build.py"


def test_what_the_pages_name_is_in_the_code():
    root = Path(__file__).parents[1]
    code = defaultdict(str)
    for path in root.rglob("*.py"):
        code[path.stem] += path.read_text(encoding="utf-8")
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")]
    named = 0
    for page in pages:
        for module, name in re.findall(
            r"`([a-z_]+)\.([A-Za-z_]+)`", page.read_text(encoding="utf-8")
        ):
            if module in code:
                named += 1
                assert re.search(rf"\b{name}\b", code[module]), f"{page}: {module}.{name}"
    assert named > 5
