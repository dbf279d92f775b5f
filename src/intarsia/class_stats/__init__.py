"""Statistics of classes: Gaussians, the paper's mixtures, prototypes, and how features drift."""
