"""Which architecture a checkpoint is of: from what it says of itself, or from its tensors."""
