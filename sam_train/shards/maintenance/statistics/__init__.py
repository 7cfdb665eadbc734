"""`sam-data stats`: the paper's Figures 5 to 7 for any shards.

measure.py      histograms of shards, in one pass and constant memory
reference.py    the paper's numbers for SA-1B and other data sets
svg_figure.py   style of all figures, and their SVG
figures.py      figures from histograms
page.py         figures and numbers as one HTML file
command.py      the command
"""

__all__: list[str] = []  # modules are imported by name
