"""Adding the built-in server Gateway Admin, from the list of servers."""

from django.db import IntegrityError
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_POST

from capabilities import Capability, requires
from gatewayadmin.admin_server.tools import TOOLS
from gateways.built_in import NameInUse, add_built_in
from gateways.models import Reach
from servers.models import ADMIN_URL
from ui.pages import AppRequest, leave

ABOUT = "Reads and explains this gateway for agents, with the permissions of the person they act for."
ADDED = "Gateway Admin added. Choose who may use it"


@require_POST
@requires(Capability.SERVERS_MANAGE)
@requires(Capability.GATEWAYS_MANAGE)
def add_gateway_admin(request: AppRequest) -> HttpResponse:
    """Add the server Gateway Admin and its gateway. Then show the page that sets who may use the gateway.

    No team may use the new gateway yet.
    """
    tools = [tool.definition for tool in TOOLS.values()]
    try:
        gateway = add_built_in(
            ADMIN_URL,
            name="Gateway Admin",
            slug="gateway-admin",
            about=ABOUT,
            tools=tools,
            reach=Reach.TEAMS,
            by=request.user,
        )
    except (NameInUse, IntegrityError) as refused:
        text = str(refused) if isinstance(refused, NameInUse) else "Gateway Admin is there already"
        return leave(request, reverse("servers:list"), text)
    return leave(request, reverse("gateways:reach", args=[gateway.slug]), ADDED)
