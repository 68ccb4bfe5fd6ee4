"""Plots, reports and progress lines; they depend only on blocks, rates and histories."""
