"""What every other part stands on: never prints, exits or reads the environment."""
