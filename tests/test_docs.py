"""The pages say what the files of numbers say."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import build


def test_every_table_is_written_from_its_numbers():
    pages = build.pages()
    assert len(pages) == 2
    for path, text in pages.items():
        assert text == path.read_text(encoding="utf-8"), f"{path}: run python docs/build.py"
