"""Read and write checkpoints: weights, the model's config and their provenance.

`model.pt` is a dictionary of tensors and plain containers, so `weights_only=True` reads it:

    {"format": "sam-train/1", "model": state dict, "config": {"_target_": "sam_train.model.build...", ...},
     "provenance": {...}}

A `.safetensors` file of this project holds the same: the tensors under the released names, and config and provenance as JSON in
its metadata. A stored config may build only a model. Released weights are read and written too: their files hold a bare state
dict, from whose shapes the config is inferred.
"""

from sam_train.checkpoint.loading import build_model, initialize_from_checkpoint, load_checkpoint
from sam_train.checkpoint.reading import FORMAT, Checkpoint, checkpoint_hash, read_checkpoint
from sam_train.checkpoint.run_checkpoint import RUN_KEY, merged_model, run_description
from sam_train.checkpoint.writing import atomic_torch_save, export_weights, save_checkpoint, save_safetensors
from sam_train.model.weights import load_weights

__all__ = [
    "FORMAT",
    "RUN_KEY",
    "Checkpoint",
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
]
