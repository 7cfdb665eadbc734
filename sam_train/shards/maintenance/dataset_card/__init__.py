"""`sam-data card`: a finished set in words, numbers and figures (README.md) and for machines (croissant.json)."""
