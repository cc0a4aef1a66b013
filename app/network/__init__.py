"""The detector as PyTorch modules. Imports torch and numpy, and nothing else of this program."""
