"""The embedded tiny model: what it sees, how it is trained, and the benchmark it is measured on."""
