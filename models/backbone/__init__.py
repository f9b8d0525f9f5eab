"""Image features from timm's models, and their weights."""
