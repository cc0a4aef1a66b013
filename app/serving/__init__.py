"""Online: bytes in, JSON, PNG or arrays out. Knows no data set."""
