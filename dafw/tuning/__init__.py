"""Searching a method's hyper-parameters by a score that needs no target label."""
