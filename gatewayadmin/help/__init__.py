"""The documentation in docs/, served at /help/, and links from the pages to it."""
