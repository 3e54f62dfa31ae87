"""Segmentation: a class for each pixel of one image."""
