"""What the commands write and read again: results, histories, where they come from."""
