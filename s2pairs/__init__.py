"""Sentinel-2 tiles to a cube of patches at several dates."""
