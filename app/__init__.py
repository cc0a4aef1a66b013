"""Oddigit: tells digit images from everything else with a small autoencoder, and answers over HTTP."""
