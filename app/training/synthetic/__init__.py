"""Images made from normal images: synthetic anomalies, and synthetic uploads."""
