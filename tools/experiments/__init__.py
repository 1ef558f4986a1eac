"""Experiments of the published methods, repeated in small on handwritten digits."""
