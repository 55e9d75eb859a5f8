"""A report on the commands' results and histories: one HTML page, Markdown, JSON, and the figures as files."""
