"""The names a package exports are frozen: adding, renaming or dropping one is a change of this file."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PUBLIC: dict[str, list[str]] = {
    "data_engine": [],
    "data_engine.annotation_tool.backend": [],
    "data_engine.annotators": ["AnnotationResult", "Annotator", "SimulatedAnnotator"],
    "data_engine.cycle": ["SlurmRunner", "SubprocessRunner"],
    "data_engine.cycle_folder": ["CycleFolder", "PromotionRecord", "START_STEP", "Step", "StepFolder", "parse_steps"],
    "data_engine.drivers": ["Driver", "LocalDriver", "ProgressDisplay", "RayDriver", "SlurmDriver"],
    "data_engine.privacy": [
        "CenterFace",
        "Detections",
        "Detector",
        "OnnxDetector",
        "Privacy",
        "REDACTION_METHODS",
        "RedactionAudit",
        "audit_path",
        "count_listed_images",
        "face_detector_if_installed",
        "read_audit",
        "write_privacy_review",
    ],
    "data_engine.report": ["Report", "write_report"],
    "data_engine.slices": [
        "EngineJob",
        "EngineRunFolder",
        "ProgressListener",
        "SliceListing",
        "SliceProgress",
        "SliceResult",
        "SliceStatus",
        "Worker",
        "existing_result",
        "with_absolute_paths",
    ],
    "data_engine.sources": ["ImageReference", "ImageReferences", "LISTING_REASONS", "LOAD_REASONS", "Source", "open_source"],
    "data_engine.stages": ["AssistedManual", "FullyAutomatic", "SemiAutomatic", "Stage"],
    "sam_train": ["AutomaticMaskGenerator", "Predictor", "__version__", "load_checkpoint", "load_predictor"],
    "sam_train.checkpoint": [
        "Checkpoint",
        "FORMAT",
        "RUN_KEY",
        "atomic_torch_save",
        "build_model",
        "checkpoint_hash",
        "export_weights",
        "initialize_from_checkpoint",
        "load_checkpoint",
        "load_weights",
        "merged_model",
        "read_checkpoint",
        "run_description",
        "save_checkpoint",
        "save_safetensors",
    ],
    "sam_train.cli": ["ArgumentParser", "FunctionCommand", "HydraCommand"],
    "sam_train.cost_model": ["CostEstimate", "HardwareSpec", "StepCost", "count_step", "estimate_cost", "get_device"],
    "sam_train.data": [],
    "sam_train.data.synthetic": ["SyntheticScene", "compose_scene", "write_corpus"],
    "sam_train.evaluation": [
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
    ],
    "sam_train.inference": [
        "AutomaticMaskGenerator",
        "BoxMaskGenerator",
        "EmbeddingCache",
        "EmbeddingMaskGenerator",
        "GeneratedMask",
        "GridMaskGenerator",
        "MaskGenerator",
        "MaskOrigin",
        "PackedPredictor",
        "Predictor",
        "PredictorLike",
        "TextMaskGenerator",
        "click_prompts",
        "generate_masks",
        "load_predictor",
        "make_prompts",
    ],
    "sam_train.inference.export": ["ExportOptions", "ExportedFile", "Parity", "decoder_model", "export_onnx"],
    "sam_train.losses": ["LossTerms", "SamLoss", "text_alignment_loss"],
    "sam_train.metrics": ["ClickIoU"],
    "sam_train.model": ["Sam"],
    "sam_train.optim": ["OptimizerFactory"],
    "sam_train.prompts": ["NextStep", "PromptRound", "PromptSimulator"],
    "sam_train.shards": [
        "Manifest",
        "Sample",
        "decode_jpeg",
        "done_shards",
        "encode_jpeg",
        "expand_shards",
        "iterate_samples",
        "load_manifest",
        "manifest_path",
        "write_shard",
    ],
    "sam_train.shards.exporters": ["EXPORTERS"],
    "sam_train.shards.importers": ["IMPORTERS", "import_label_maps"],
    "sam_train.shards.maintenance": [],
    "sam_train.shards.maintenance.dataset_card": [],
    "sam_train.shards.maintenance.statistics": [],
    "sam_train.text": [
        "ClipEncoder",
        "CropEmbedder",
        "NameEmbedder",
        "SentenceEncoder",
        "TextEmbeddingStore",
        "TextEmbeddings",
        "TextEncoder",
        "TextPromptEmbedder",
        "check_text_encoder",
    ],
    "sam_train.training": ["SamModule"],
    "sam_train.weights": ["ACCEPTED_CHECKPOINTS", "NAMED_WEIGHTS", "checkpoint_files", "is_weights_name", "resolve_checkpoint"],
}


def exporting_packages(root: Path) -> list[str]:
    """Packages of ours with an `__all__`, found without importing them."""
    found = []
    for path in sorted((root / name for name in ("sam_train", "data_engine")), key=str):
        for init in sorted(path.rglob("__init__.py")):
            body = ast.parse(init.read_text()).body
            assigned = [node.targets for node in body if isinstance(node, ast.Assign)]
            assigned += [[node.target] for node in body if isinstance(node, ast.AnnAssign)]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for targets in assigned for target in targets):
                found.append(".".join(init.parent.relative_to(root).parts))
    return found


def test_every_exporting_package_is_listed(repo_root: Path) -> None:
    assert exporting_packages(repo_root) == sorted(PUBLIC)


@pytest.mark.parametrize("package", PUBLIC)
def test_exported_names(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == PUBLIC[package]
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
