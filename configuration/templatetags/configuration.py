"""The template tag `managed_by`. On an object's page, it names the configuration file that governs the object."""

from typing import Any

from django import template
from django.db.models import Model
from django.template import Context

from configuration.by_hand import changed_by_hand
from configuration.models import ManagedObject

register = template.Library()


@register.inclusion_tag("configuration/managed_by.html", takes_context=True)
def managed_by(context: Context, row: Model, yaml_url: str = "") -> dict[str, Any]:
    """Render a line with the file and source that govern `row`. Without such a file, render nothing.

    With `yaml_url`, the line also has a link to the page that shows the object as YAML.

    If somebody changed the object by hand after the file was applied, the line shows the time of the change. Viewers
    who may see admin events also see the person who changed the object.
    """
    managed = ManagedObject.objects.of(row)
    changed = changed_by_hand(row, managed) if managed else None
    return {"managed": managed, "changed": changed, "yaml_url": yaml_url, "can": context["can"]}
