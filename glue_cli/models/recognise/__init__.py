"""Find out a checkpoint's architecture from its metadata, the configuration beside it, or its tensors."""
