"""Perfuse: dynamic graph neural networks of whole-body pharmacokinetics."""

__version__ = "0.2.0"
