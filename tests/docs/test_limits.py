"""The page of limits has the same numbers as the code, and names every setting."""

import re
from datetime import timedelta
from typing import Any

from django.conf import settings

from accounts import password_links
from accounts.models import WorkspaceSettings
from accounts.models.users import INVITATION
from accounts.people_forms import MOST_INVITED
from gatewayadmin.admin.base import CapabilityAdmin
from gatewayadmin.admin_server import app as admin_server
from gatewayadmin.config.database import SILENCE_S
from gatewayadmin.playground import run
from gatewayadmin.serving.http_protocol import LimitedHttpProtocol
from gateways.access_forms import MOST_APPROVERS
from gateways.models import access_requests
from oauth.limits import A_MINUTE
from proxy import server_requests, streams, upstream_streams
from scim import endpoint, schemas, storage
from scim.models import MOST_KEYS
from servers.forms import ServerForm
from tests.docs.pages import ROOT
from tokens.models import LIFETIMES
from ui.export import MAX_EXPORTS
from ui.pages import PAGE_SIZE
from wire import client, definitions, errors, fair_queue, jsonrpc, sse, trace_context

PAGE = (ROOT / "docs" / "reference" / "limits.md").read_text()
HOUR = timedelta(hours=1)
SECONDS: Any = ServerForm.base_fields
LIMITS = {
    "seconds to connect to a server (timeout)": int(errors.CONNECT_SECONDS),
    "seconds without data from the server during a call": SECONDS["timeout_seconds"].max_value,
    "seconds of a whole call": SECONDS["total_seconds"].max_value,
    "a request at `/mcp`, MiB": settings.BODY_MIB,
    "a server's answer, MiB": settings.ANSWER_MIB,
    "MiB of large answers in memory, in each worker": settings.ANSWERS_MIB,
    "MiB of large answers for one person; a single answer may be larger": settings.ANSWERS_MIB // fair_queue.SHARES,
    "MiB of large answers that arrive from one server at once; an answer that arrives alone may be larger": (
        settings.ANSWERS_MIB // fair_queue.SERVER_SHARES
    ),
    "KiB a second that a large answer must reach while another answer waits for memory": fair_queue.LEAST_PACE >> 10,
    "seconds in which a client must read 16 KiB of an answer, or the rest if it is shorter": int(
        LimitedHttpProtocol.untaken_seconds
    ),
    "values in one JSON message larger than 1 MiB": jsonrpc.MOST_VALUES,
    "digits of a number written with an exponent": jsonrpc.MOST_DIGITS,
    "events on one stream of a server": sse.MOST_EVENTS,
    "calls in progress of one token, in each worker": settings.TOKEN_CALLS,
    "requests that wait for the database, in each worker": settings.WAITING_CALLS,
    "calls that wait for one server, in each worker": fair_queue.MOST_WAITING,
    "calls of one person that wait for one server, in each worker": fair_queue.MOST_WAITING_OF_ONE,
    "calls of one connection that wait in one worker after `input_required`": server_requests.MOST_SUSPENDED,
    "rounds in which a server may ask for input in one call": server_requests.MOST_ROUNDS,
    "requests a server may make in one round": server_requests.MOST_ASKED,
    "seconds in which a client must answer a server's request": settings.ANSWER_SECONDS,
    "hours an MCP session lives without use": settings.SESSION_HOURS,
    "unread messages of one stream to a client": streams.MOST_PENDING,
    "MiB of unread messages of one stream, in total": streams.MOST_PENDING_BYTES >> 20,
    "standing streams that one worker reads from servers, for clients without a standing stream": (
        upstream_streams.MOST_FOR_CALLS
    ),
    "tools, prompts or resources of one list of a server": client.MOST_FEATURES,
    "pages of one list of a server": client.MOST_PAGES,
    "characters of a tool's or prompt's name as clients see it": definitions.MAX_NAME,
    "characters of a tool's or prompt's name at the server": definitions.LONGEST_NAME,
    "bytes of a resource's URI": definitions.LONGEST_URI,
    "gateways a request may pass": trace_context.MOST_HOPS,
    "runs of the playground at once, in each worker": run.MOST_RUNS,
    "runs of the playground of one person, in each worker": run.MOST_RUNS_OF_ONE,
    "seconds a run of the playground may take": run.RUN_SECONDS,
    "seconds a run of the playground may continue after its page was closed": run.END_SECONDS,
    "addresses in one invitation": MOST_INVITED,
    "access requests of one person that wait for a decision": access_requests.MOST_OPEN,
    "access requests that one person may make in a day": access_requests.MOST_A_DAY,
    "named approvers of a gateway": MOST_APPROVERS,
    "hours an invitation works": INVITATION // HOUR,
    "hours a password reset link works": password_links.RESET // HOUR,
    "seconds an OAuth access token lives": WorkspaceSettings._meta.get_field("oauth_access_token_seconds").default,
    "days an API access token lives, if it expires": max(LIFETIMES),
    "entries of a page of a list": PAGE_SIZE,
    "rows of a page of a list in `/admin/`": CapabilityAdmin.list_per_page,
    "entries of a page of SCIM": schemas.MOST_RESULTS,
    "entries that a filter of SCIM may look through": storage.MOST_LOOKED_THROUGH,
    "requests to `/scim/v2` in a minute, of one key": endpoint.A_MINUTE,
    "provisioning keys": MOST_KEYS,
    "requests to the [client directory](../how-to/directory.md) in a minute, from one address": A_MINUTE["directory"],
    "exports of one person at once, in each worker": MAX_EXPORTS,
    "seconds a page waits for a database that does not answer": int(SILENCE_S),
    "seconds a call to the built-in server Gateway Admin waits for its turn": int(admin_server.LONGEST_WAIT_S),
}


def test_the_page_has_each_limit_with_the_number_of_the_code() -> None:
    rows = dict(re.findall(r"^\| (.+?) \| ([\d,]+) \|", PAGE, re.MULTILINE))

    assert {name: int(number.replace(",", "")) for name, number in rows.items()} == LIMITS
