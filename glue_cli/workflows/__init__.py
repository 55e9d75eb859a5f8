"""What each command does, as plain functions from a plan to a result."""
