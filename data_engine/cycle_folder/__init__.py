"""The folder of a data-engine loop: its files, its steps, and which model is promoted."""
