"""What all pages share: rendering helpers, template tags, error pages. No models."""
