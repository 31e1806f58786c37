"""Durations in bounded memory."""
