"""Redundancy metrics, one file each."""
