"""From annotation files to batches: label space, annotations, masks, bootstrapping, datasets and loaders."""
