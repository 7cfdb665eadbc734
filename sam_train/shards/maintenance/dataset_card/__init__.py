"""`sam-data card`: a description of a finished data set with numbers and figures, README.md, and croissant.json for programs."""

__all__: list[str] = []  # modules are imported by name
