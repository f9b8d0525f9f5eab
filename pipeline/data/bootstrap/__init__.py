"""Turn annotations into class-id masks, splits and a label space."""
