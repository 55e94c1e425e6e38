"""Schedules of the share of training done, sharpness-aware rules, and the Pareto programme."""
