"""What all other folders use: errors, progress, units, seeds, threads, memory, imports, output files."""
