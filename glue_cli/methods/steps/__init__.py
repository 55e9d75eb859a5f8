"""Steps of a search for alpha: descents, Gauss-Newton's, SPSA's, and what these are made of."""
