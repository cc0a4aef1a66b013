"""Shared by training and serving: images, scores, calibration, model cards and the store."""
