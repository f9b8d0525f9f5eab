"""Read datasets in the layouts in which they lie on disk."""
