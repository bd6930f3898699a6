"""out/report.html: what a loop, or an evaluation, has come to."""

from minirlhf.report.page import write

__all__ = ["write"]
