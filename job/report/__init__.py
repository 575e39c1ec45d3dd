"""report.html: one self-contained page about a run."""

from job.report.page import render_report

__all__ = ["render_report"]
