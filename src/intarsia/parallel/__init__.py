"""Work shared between processes."""
