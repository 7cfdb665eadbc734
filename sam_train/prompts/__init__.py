"""Prompt simulation: it trains the model, measures it, and stands in for annotators."""

from sam_train.prompts.prompt_simulator import NextStep, PromptRound, PromptSimulator

__all__ = ["NextStep", "PromptRound", "PromptSimulator"]
