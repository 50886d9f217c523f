"""Putting lowered layers into a dense graph, and keeping their activations features first."""
