"""Accounting: the plan of terms and tests, their FLOPs, and the audit of a run."""
