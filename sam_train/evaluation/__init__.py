"""What a checkpoint is worth, a protocol a file."""
