"""Kronecker-factored curvatures: KFAC, EKFAC, and their metrics."""
