"""Tests of serving; those with the marker `vllm` run where vLLM is, by `make test-vllm`."""
