"""What a method works on: the experts' bank, the blends' outputs, goals, and the account of what is spent."""
