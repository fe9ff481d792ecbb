"""The template tag for a line on an object's page: the configuration file that governs the object."""

from typing import Any

from django import template
from django.db.models import Model
from django.template import Context

from configuration.by_hand import changed_by_hand
from configuration.models import ManagedObject

register = template.Library()


@register.inclusion_tag("configuration/managed_by.html", takes_context=True)
def managed_by(context: Context, row: Model, yaml_url: str = "") -> dict[str, Any]:
    """Render the file and source that govern `row`, and a link to the object as YAML; nothing if no file governs it.

    If somebody changed the object by hand after the file was applied, the line shows the time of the change. Viewers
    who may see admin events also see the person who changed the object.
    """
    managed = ManagedObject.objects.of(row)
    changed = changed_by_hand(row, managed) if managed else None
    return {"managed": managed, "changed": changed, "yaml_url": yaml_url, "can": context["can"]}
