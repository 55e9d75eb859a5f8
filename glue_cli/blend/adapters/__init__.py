"""Low-rank adapters of one base: read, put on their base, mixed."""
