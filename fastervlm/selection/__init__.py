"""How many patches stay and which ones: tensors alone; no model and no prompt."""
