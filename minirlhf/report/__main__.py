"""The report of a folder: python -m minirlhf.report out"""

import argparse

from minirlhf.cli import exit_codes
from minirlhf.report import write

parser = argparse.ArgumentParser(
    prog="python -m minirlhf.report", description="Write the report of a run of run_rlhf.py."
)
parser.add_argument("folder", nargs="?", default="out", help="what it was run with as --out")
settings = parser.parse_args()
with exit_codes():
    print(f"wrote {write(settings.folder)}")
