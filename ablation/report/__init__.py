"""What was found: reports, figures and tables, of an experiment's folder or of raw logs."""

from ablation.report.compare import LogComparison, compare_logs

__all__ = ["LogComparison", "compare_logs"]
