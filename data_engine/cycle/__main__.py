"""`python -m data_engine.cycle` is `sam-cycle`."""

from data_engine.commands import CYCLE

if __name__ == "__main__":
    CYCLE.main()
