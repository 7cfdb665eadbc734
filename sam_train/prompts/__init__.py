"""Playing the annotator: the simulator that trains the model also measures it and stands in for people."""

from sam_train.prompts.simulator import PromptSimulator, Round, Then

__all__ = ["PromptSimulator", "Round", "Then"]
