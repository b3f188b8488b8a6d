"""The report of a run: one HTML file, its pictures, and the comparison of several runs."""

from sslops.training.report.compare import compare, write_comparison
from sslops.training.report.pictures import neighbours_png, pairs_png, write_pictures
from sslops.training.report.report import write_report
from sslops.training.report.run_folder import is_run

__all__ = [
    "compare",
    "is_run",
    "neighbours_png",
    "pairs_png",
    "write_comparison",
    "write_pictures",
    "write_report",
]
