"""The HTTP endpoints: they join the HTTP layer, the engine and the telemetry."""
