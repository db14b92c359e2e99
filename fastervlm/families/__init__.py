"""The kinds of models that can be pruned: a module or a package for each, and a line in `registry`."""
