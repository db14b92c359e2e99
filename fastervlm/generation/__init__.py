"""What stands in front of the stock `generate` and `forward`: inputs read, prompts shortened, KV caches remembered."""
