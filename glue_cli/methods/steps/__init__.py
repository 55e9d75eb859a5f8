"""The steps of a search for alpha: by gradient, Gauss-Newton or SPSA, and their parts."""
