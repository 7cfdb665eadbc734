"""Evaluation protocols, one per file, which measure a checkpoint."""

from sam_train.evaluation.clicks import ClickProtocol, ClickResult
from sam_train.evaluation.clicks_needed import ClicksNeededProtocol
from sam_train.evaluation.edges import EdgeProtocol
from sam_train.evaluation.instances import InstanceProtocol
from sam_train.evaluation.prefill import PrefillProtocol
from sam_train.evaluation.proposals import ProposalProtocol
from sam_train.evaluation.protocol import EvaluationProtocol
from sam_train.evaluation.sa23 import Sa23Protocol
from sam_train.evaluation.text import TextProtocol

__all__ = [
    "ClickProtocol",
    "ClickResult",
    "ClicksNeededProtocol",
    "EdgeProtocol",
    "EvaluationProtocol",
    "InstanceProtocol",
    "PrefillProtocol",
    "ProposalProtocol",
    "Sa23Protocol",
    "TextProtocol",
]
