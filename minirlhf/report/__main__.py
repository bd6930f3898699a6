"""The report of a folder: python -m minirlhf.report out"""

import sys

from minirlhf import UserError
from minirlhf.report import write

try:
    print(f"wrote {write(*sys.argv[1:2] or ['out'])}")
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
