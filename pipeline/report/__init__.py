"""The report page and the comparison of variants."""
