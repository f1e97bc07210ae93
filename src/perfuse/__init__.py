"""Perfuse: dynamic graph neural networks of whole-body pharmacokinetics."""

__version__ = "0.4.0"
