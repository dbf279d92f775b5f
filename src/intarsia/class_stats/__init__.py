"""Statistics of classes: Gaussians, mixtures, and how features drift."""
