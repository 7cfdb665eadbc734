"""Playing the annotator: the simulator that trains the model also measures it and stands in for people."""

from sam_train.prompts.prompt_simulator import NextStep, PromptRound, PromptSimulator

__all__ = ["NextStep", "PromptRound", "PromptSimulator"]
