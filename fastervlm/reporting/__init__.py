"""Tables, plots, files, measurements: what commands tell their users with."""
