"""What a run of the cycle came to: report.json for programs, report.html for people.

    sam-report run=runs/quickstart

A run that is still going, or stopped halfway, gives the report of what there is; what is missing says "not yet".
"""

from data_engine.report.build_report import Report, write_report

__all__ = ["Report", "write_report"]
