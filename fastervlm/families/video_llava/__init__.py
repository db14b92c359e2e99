"""Video-LLaVA: clips, and pictures beside them."""
