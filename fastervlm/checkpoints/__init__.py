"""Checkpoints: loaded, quantized, and read in their authors' layouts."""
