"""What search methods work with: the experts' weights, the outputs of blends, goals, and the account of costs."""
