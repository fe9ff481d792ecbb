"""Grave acts ask for the password again (requirements 8.8)."""

from collections.abc import Callable

from allauth.account.decorators import reauthentication_required
from django.http import HttpResponse

type View = Callable[..., HttpResponse]

# Looking is free. A form that is sent waits in the session for the password, and is acted on once that is right.
ask_again: Callable[[View], View] = reauthentication_required(allow_get=True)
