"""Nobody is recognised: faces and plates are covered before a picture is annotated or stored, and some pictures left out.

privacy.py         what happens to a picture
detections.py      what a detector is; centerface.py, onnx_detector.py, network.py: two of them
pyramid.py         a detector at all scales
cover.py           blur, pixelate, fill
audit.py           the boxes, apart from the shards
review.py          a page for people
"""

from data_engine.privacy.audit import RedactionAudit, audit_path, read_audit
from data_engine.privacy.centerface import CenterFace
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
    "read_audit",
    "write_privacy_review",
]
