"""The web application: Django for people; /mcp joins it here."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")

application = get_asgi_application()
