"""Incidents: what a subject did, what it still may do, and the act that stops it."""
