"""Plots, reports, stored results and progress lines."""
