"""A report on what the commands wrote: one HTML page, Markdown, JSON, and the figures as files."""

from glue_cli.workflows.report.report import ReportPlan, plan_report, report

__all__ = ["ReportPlan", "plan_report", "report"]
