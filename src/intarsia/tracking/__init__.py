"""Trackers of experiments: what a run is made with and what comes of it, told to TensorBoard and its like."""
