"""The data engine of Segment Anything: assisted-manual, semi-automatic and fully automatic annotation."""

__all__: list[str] = []  # packages are imported by name
