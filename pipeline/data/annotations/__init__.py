"""Read, check and quarantine annotation files in LVIS's and COCO's JSON."""
