"""Annotation files in LVIS's and COCO's JSON: reading, checking, quarantine."""
