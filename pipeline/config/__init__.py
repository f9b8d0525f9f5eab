"""Settings: their schema, how they are read, and the folders of a project."""
