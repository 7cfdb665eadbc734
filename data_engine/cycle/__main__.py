"""`python -m data_engine.cycle`: what `sam-cycle` does."""

from data_engine.cycle.command import main

if __name__ == "__main__":
    main()
