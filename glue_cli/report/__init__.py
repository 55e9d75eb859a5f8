"""A report on what the commands wrote: one HTML page, Markdown, JSON, and the figures as files."""
