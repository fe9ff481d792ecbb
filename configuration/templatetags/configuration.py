"""A line on the page of an object that a configuration file governs."""

from typing import Any

from django import template
from django.db.models import Model

from configuration.models import ManagedObject

register = template.Library()


@register.inclusion_tag("configuration/managed_by.html")
def managed_by(row: Model, yaml_url: str) -> dict[str, Any]:
    """Render the file and source that govern `row`, and a link to the object as YAML; nothing for other objects."""
    return {"managed": ManagedObject.objects.of(row), "yaml_url": yaml_url}
