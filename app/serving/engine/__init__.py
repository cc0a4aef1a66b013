"""The detector under load: batching, decoding, admission, reloading. Imports no web framework."""
