"""Readers and writers of foreign file formats; each gives a validated ``CurveTable``."""
