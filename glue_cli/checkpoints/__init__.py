"""Files of tensors: their headers, reading and writing, hashes, and where a result is written."""
