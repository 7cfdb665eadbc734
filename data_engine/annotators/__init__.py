"""Who says what is a mask: a person, or the simulator that stands in for one."""

from data_engine.annotators.base import Annotator, Work
from data_engine.annotators.simulated import SimulatedAnnotator

__all__ = ["Annotator", "SimulatedAnnotator", "Work"]
