"""The online side: HTTP requests in, JSON, PNG or arrays out."""
