"""Schedules as functions of the share of training done."""
