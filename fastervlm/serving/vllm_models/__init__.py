"""vLLM's own model classes with fewer visual tokens; imported by vLLM alone, which must be there."""
