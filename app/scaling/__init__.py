"""Bulk scoring: lists of images that take one machine hours, or several machines."""
