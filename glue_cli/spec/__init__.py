"""The schema of glue.yaml, the YAML file, and budgets."""
