"""Figures, plots and the report of a published version."""
