"""docs/report.png and docs/label.png: the pages, as a headless Chromium shows them.

python docs/screenshots.py out     # after python run_rlhf.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import Browser
from PIL import Image

DOCS = Path(__file__).resolve().parent


def shot(browser: Browser, name: str, height: int) -> None:
    browser.call("Emulation.setScrollbarsHidden", hidden=True)
    browser.shot(DOCS / name, 1280, height)
    Image.open(DOCS / name).quantize(96).save(DOCS / name, optimize=True)  # a third of the size


def report(browser: Browser, out: Path) -> None:
    browser.open((out / "report.html").resolve().as_uri())
    shot(browser, "report.png", 1500)


def ranking_page(browser: Browser, out: Path, folder: str) -> None:
    """With two responses ranked."""
    candidates = (out / "round1" / "candidates.jsonl").resolve()
    words = ["--candidates", str(candidates), "--out", f"{folder}/rankings.jsonl", "--no-open"]
    command = [sys.executable, "label.py", *words]
    with subprocess.Popen(command, cwd=DOCS.parent, stdout=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stdout if "/?token=" in line)
        browser.resize(1280, 780)
        browser.open(line.split()[-1])
        time.sleep(1)
        browser.key("2")
        browser.key("4")
        shot(browser, "label.png", 780)
        process.terminate()


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        Browser(Path(folder)) as browser,
    ):
        report(browser, out)
        ranking_page(browser, out, folder)
