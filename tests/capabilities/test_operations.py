"""The access rule that a REST method declares is enforced; a method without a rule is refused to everybody."""

from typing import Any

import pytest
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate

from capabilities import Capability
from tests import make
from ui.operations import operation
from ui.rest import Resource

pytestmark = pytest.mark.django_db


class Declared(Resource):
    """A resource with one method that declares an access rule."""

    @operation(needs=None)
    def retrieve(self, request: Request) -> Response:
        return Response({})


class Undeclared(Declared):
    """A resource with the same method, but without a declaration."""

    def retrieve(self, request: Request) -> Response:
        return Response({})


def answer_of(resource: Any) -> int:
    """Return the status of a request by a person with every capability."""
    request = APIRequestFactory().get("/api/thing")
    force_authenticate(request, make.user(*Capability))
    return int(resource.as_view({"get": "retrieve"})(request).status_code)


def test_a_method_that_declares_nothing_is_refused_to_everybody() -> None:
    assert answer_of(Declared) == 200
    assert answer_of(Undeclared) == 403
