"""out/report.html: what a loop, or an evaluation, has come to."""

from minirlhf.report.page import write
from minirlhf.report.summary import ending, provenance

__all__ = ["ending", "provenance", "write"]
