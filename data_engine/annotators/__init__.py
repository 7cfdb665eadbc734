"""Annotators of the stages: the interface, and an annotator simulated from ground truth."""

from data_engine.annotators.base import AnnotationResult, Annotator
from data_engine.annotators.simulated import SimulatedAnnotator

__all__ = ["AnnotationResult", "Annotator", "SimulatedAnnotator"]
