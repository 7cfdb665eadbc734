"""`python -m data_engine.report` is `sam-report`."""

from data_engine.commands import REPORT

if __name__ == "__main__":
    REPORT.main()
