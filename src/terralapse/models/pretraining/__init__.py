"""Backbones that are trained before any task."""
