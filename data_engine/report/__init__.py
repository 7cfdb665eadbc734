"""The report on a data-engine loop: report.json for programs, report.html for people.

    sam-report run=runs/quickstart

The report of a loop that is still running or was stopped describes what exists so far; missing numbers read "not yet".
"""

from data_engine.report.build_report import Report, write_report

__all__ = ["Report", "write_report"]
