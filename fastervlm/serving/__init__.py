"""Pruned models behind an OpenAI-compatible server, in vLLM or in transformers, and the clients that ask such servers."""
