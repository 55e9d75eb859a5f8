"""What each command is asked to do, checked from headers alone. Never imports torch."""
