"""What every room stands on: errors, progress, units, seeds, threads, memory, imports, output files."""
