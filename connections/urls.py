from django.urls import path

from connections import carried_identities, gateway_hosts, sessions, tool_grants, tool_matrix, tool_sets, views

app_name = "connections"

urlpatterns = [
    path("settings/mcp-connections", views.mcp_connections, name="mcp"),
    path("settings/identities", carried_identities.own, name="mine"),
    path("hosts/<uuid:pk>/connections/", views.for_host, name="for_host"),
    path("hosts/<uuid:pk>/enrolled/", views.enrolments, name="enrolled"),
    path("hosts/<uuid:pk>/sessions/", sessions.of_host, name="sessions"),
    path("gateways/<slug:slug>/connections/", views.for_gateway, name="for_gateway"),
    path("gateways/<slug:slug>/access/", gateway_hosts.listing, name="gateway_hosts"),
    path("gateways/<slug:slug>/access/hosts/", gateway_hosts.restrict, name="restrict_hosts"),
    path("gateways/<slug:slug>/access/hosts/<uuid:host>/allow/", gateway_hosts.allow, name="allow_host"),
    path("gateways/<slug:slug>/access/hosts/<uuid:host>/block/", gateway_hosts.block, name="block_host"),
    path("gateways/<slug:slug>/access/hosts/<uuid:host>/reset/", gateway_hosts.reset, name="reset_host"),
    path("gateways/<slug:slug>/access/hosts/<uuid:host>/limit/", tool_sets.limit, name="limit_host"),
    path("gateways/<slug:slug>/access/matrix/", tool_matrix.matrix, name="tool_matrix"),
    path("gateways/<slug:slug>/access/tools/", tool_sets.listing, name="tool_sets"),
    path("gateways/<slug:slug>/access/tools/given/", tool_sets.restrict, name="restrict_tools"),
    path("gateways/<slug:slug>/access/tools/add/", tool_sets.add, name="add_tool_set"),
    path("tool-sets/<uuid:pk>/", tool_sets.detail, name="tool_set"),
    path("tool-sets/<uuid:pk>/edit/", tool_sets.edit, name="edit_tool_set"),
    path("tool-sets/<uuid:pk>/archive/", tool_sets.archive, name="archive_tool_set"),
    path("tool-sets/<uuid:pk>/give/", tool_sets.give, name="give_tools"),
    path("tool-grants/", tool_grants.listing, name="grants"),
    path("tool-grants/end/", tool_grants.end_selected, name="end_grants"),
    path("tool-grants/<uuid:pk>/end/", tool_sets.end_grant, name="end_grant"),
    path("switch/connections/", views.switch, name="switch"),
    path("revoke/connections/", views.revoke_picked, name="revoke_picked"),
    path("connections/<uuid:pk>/disable/", views.disable, name="disable"),
    path("connections/<uuid:pk>/enable/", views.enable, name="enable"),
    path("connections/<uuid:pk>/revoke/", views.revoke, name="revoke"),
    path("connections/<uuid:pk>/sessions/end/", sessions.end, name="end_sessions"),
    path("connections/<uuid:pk>/identities/<uuid:assignment>/", carried_identities.identity, name="identity"),
    path("connections/<uuid:pk>/identities/<uuid:assignment>/drop/", carried_identities.drop, name="drop_identity"),
]
