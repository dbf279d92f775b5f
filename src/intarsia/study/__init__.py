"""Studies: methods side by side, the paper's cells, what a run will cost."""
