"""The data engine of Segment Anything: assisted-manual, semi-automatic and fully automatic annotation."""
