"""Image files in, uint8 [28, 28] images out: decoding, preprocessing, and the features of an upload."""
