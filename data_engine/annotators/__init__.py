"""Who says what is a mask: a person, or the simulator that stands in for one."""

from data_engine.annotators.base import AnnotationResult, Annotator
from data_engine.annotators.simulated import SimulatedAnnotator

__all__ = ["AnnotationResult", "Annotator", "SimulatedAnnotator"]
