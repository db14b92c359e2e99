"""LLaVA-NeXT: an overview and crops of each picture."""
