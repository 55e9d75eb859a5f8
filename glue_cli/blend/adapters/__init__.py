"""Low-rank adapters of one base: read them, fit them to the base, mix them."""
