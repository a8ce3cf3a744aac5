"""Benchmarks: what guidance costs, and how this package fares beside PyTorch, in ratios of one run."""

PARTS = ("guided", "reference", "maps", "start", "memory", "operations")
