"""What every request passes before and after its endpoint: protocol, body, keys, errors, shutdown."""
