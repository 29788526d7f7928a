"""Observers: ready-made receivers of events."""
