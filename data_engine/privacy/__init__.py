"""Privacy: faces and licence plates are redacted before an image is annotated or stored; images on a take-down list are skipped.

privacy.py         redaction of images and sources, the take-down list
detections.py      the detector interface; centerface.py and onnx_detector.py implement it, onnx_session.py runs ONNX files
pyramid.py         multi-scale tiled detection
redaction.py       blur, pixelate, fill
audit.py           the redacted boxes, stored beside the shards
review.py          an HTML page to review the redactions
"""

from data_engine.privacy.audit import RedactionAudit, audit_path, read_audit
from data_engine.privacy.centerface import CenterFace, face_detector_if_installed
from data_engine.privacy.detections import Detections, Detector
from data_engine.privacy.onnx_detector import OnnxDetector
from data_engine.privacy.privacy import Privacy, count_listed_images
from data_engine.privacy.redaction import REDACTION_METHODS
from data_engine.privacy.review import write_privacy_review

__all__ = [
    "REDACTION_METHODS",
    "CenterFace",
    "Detections",
    "Detector",
    "OnnxDetector",
    "Privacy",
    "RedactionAudit",
    "audit_path",
    "count_listed_images",
    "face_detector_if_installed",
    "read_audit",
    "write_privacy_review",
]
