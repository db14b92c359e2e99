"""The family of every class whose language model takes ready features and that has none of its own."""
