"""Write the report page and the comparison of variants."""
