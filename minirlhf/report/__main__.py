"""The report of a folder: python -m minirlhf.report out"""

import argparse
import sys

from minirlhf import UserError
from minirlhf.report import write

parser = argparse.ArgumentParser(
    prog="python -m minirlhf.report", description="Write the report of a run of run_rlhf.py."
)
parser.add_argument("folder", nargs="?", default="out", help="what it was run with as --out")
try:
    print(f"wrote {write(parser.parse_args().folder)}")
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
