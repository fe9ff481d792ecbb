"""Help links: for each page of the product, the page of the documentation that it links to."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from gatewayadmin.first_steps import SETS_UP
from gatewayadmin.help.documents import HelpPage, documents

FOR_MEMBERS = "how-to/for-an-invited-developer"  # For the dashboard of people who set up nothing.

# The keys are URL names. A key that ends with a colon is the name of an app, and is for all other URLs of the app.
_TOPICS = {
    "overview": "quickstart",
    "setup": "quickstart",
    "playground": "how-to/tools",
    "doctor": "how-to/connect-a-client",
    "mfa_index": "how-to/people-and-roles",
    "account_login": "how-to/for-an-invited-developer",
    "account_reset_password": "how-to/people-and-roles",
    "access:": "how-to/answer-an-auditor",
    "access:reviews": "how-to/review-access",
    "access:start_review": "how-to/review-access",
    "access:review": "how-to/review-access",
    "access:reassign_review": "how-to/review-access",
    "access:remind_reviewers": "how-to/review-access",
    "access:close_review": "how-to/review-access",
    "accounts:": "how-to/people-and-roles",
    "accounts:settings": "concepts",
    "accounts:workspace": "reference/settings",
    "accounts:capabilities": "how-to/people-and-roles",
    "approvals:": "how-to/approvals",
    "attention:": "how-to/needs-attention",
    "auditlog:": "how-to/read-the-log",
    "auditlog:events": "how-to/answer-an-auditor",
    "auditlog:event": "how-to/answer-an-auditor",
    "auditlog:proof": "how-to/answer-an-auditor",
    "connections:grants": "how-to/tools",
    "connections:": "how-to/agents-and-tokens",
    "connections:mine": "how-to/credentials",
    "connections:identity": "how-to/credentials",
    "connections:gateway_hosts": "how-to/tools",
    "connections:tool_matrix": "how-to/tools",
    "connections:tool_set": "how-to/tools",
    "connections:tool_sets": "how-to/tools",
    "directory:": "how-to/directory",
    "gateways:": "how-to/add-a-server",
    "configuration:": "how-to/configuration-as-code",
    "gateways:access": "how-to/request-access",
    "gateways:access_to": "how-to/request-access",
    "gateways:access_request": "how-to/request-access",
    "gateways:access_requests": "how-to/request-access",
    "gateways:ask_for_access": "how-to/request-access",
    "gateways:takes_requests": "how-to/request-access",
    "gateways:list": "concepts",
    "gateways:logs": "how-to/read-the-log",
    "gateways:tools": "how-to/tools",
    "gateways:catalogue": "how-to/tools",
    "gateways:changed": "how-to/tools",
    "gateways:feature": "how-to/tools",
    "gateways:tool": "how-to/tools",
    "gateways:usage": "how-to/tools",
    "gateways:teams": "how-to/people-and-roles",
    "gateways:team": "how-to/people-and-roles",
    "hosts:": "how-to/agents-and-tokens",
    "hosts:logs": "how-to/read-the-log",
    "incident:": "how-to/emergency-stop",
    "oauth:": "how-to/connect-a-client",
    "rules:": "how-to/rules",
    "scim:": "how-to/provision-people",
    "servers:": "how-to/add-a-server",
    "servers:identities": "how-to/credentials",
    "servers:logs": "how-to/read-the-log",
    "sinks:": "how-to/send-the-logs",
    "sso:": "how-to/single-sign-on",
    "tokens:": "how-to/agents-and-tokens",
    "tokens:api_keys": "reference/rest-api",
    "tokens:create_api_key": "reference/rest-api",
    "api:docs": "reference/rest-api",
    "api:docs_of": "reference/rest-api",
}


class Guide(NamedTuple):
    """The help links of a page: the documentation about it, if there is any, and the URL to report a problem."""

    page: HelpPage | None
    report_url: str


def topic_of(view: str) -> HelpPage | None:
    """Return the documentation page about the view with the name `view`; None if there is no such page."""
    app, colon, _ = view.rpartition(":")
    path = _TOPICS.get(view) or _TOPICS.get(f"{app}{colon}")
    return documents()[path] if path else None


def guide(request: HttpRequest) -> dict[str, Any]:
    """Context processor: adds `guide`, the help links of the page, looked up when a template first uses them."""
    return {"guide": SimpleLazyObject(lambda: _guide(request))}


def _guide(request: HttpRequest) -> Guide:
    match = request.resolver_match
    page = topic_of(match.view_name) if match else None
    if match and match.view_name == "overview" and not any(map(request.user.has_perm, SETS_UP)):
        page = documents()[FOR_MEMBERS]
    return Guide(page, settings.REPORT_URL)
