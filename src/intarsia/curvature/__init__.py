"""Curvature at theta0: the diagonal Fisher, its estimators, and what it predicts."""
