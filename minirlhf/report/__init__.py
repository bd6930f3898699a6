"""out/report.html: what a loop, or an evaluation, has come to."""

from minirlhf.report.page import write
from minirlhf.report.summary import provenance

__all__ = ["provenance", "write"]
