"""Annotations to class-id masks, splits and a label space."""
