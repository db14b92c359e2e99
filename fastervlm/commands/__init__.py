"""Commands of `fastervlm` that have a file of their own."""
