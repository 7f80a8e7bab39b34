"""File formats: one file per format, each verified by loading afresh what it wrote."""
