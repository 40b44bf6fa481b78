"""Where scenes come from: one Catalogue a module."""
