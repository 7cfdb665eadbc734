"""`sam-data stats`: the paper's Figures 5 to 7 for any shards.

measure.py      shards to histograms, in one pass and memory that does not grow
reference.py    what the paper says of SA-1B and other sets, number by number
figures.py      histograms to drawings
page.py         drawings and numbers to one HTML file
command.py      the command
"""
