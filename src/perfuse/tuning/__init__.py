"""Sweeps: many runs of one data set with configurations that are searched for, on Ray Tune and Optuna."""
