"""Predictions of a system on a data folder, their scores with intervals and baselines, reports, tables and pages."""
