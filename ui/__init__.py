"""Shared code of all pages: rendering helpers, template tags, error pages, and the base of REST."""
