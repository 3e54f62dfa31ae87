"""Pixels and places: open, inspect, align, plan tiles, write COGs, vectorise. No neural networks."""
