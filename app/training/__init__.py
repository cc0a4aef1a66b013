"""Offline: a data set in, a published bundle out. Knows no HTTP."""
