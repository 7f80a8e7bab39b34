"""The report of a job: one HTML file with tables and plots, that needs nothing else."""

from compress.report.write import write_report

__all__ = ["write_report"]
