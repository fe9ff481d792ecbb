"""Each mistake in a file is reported with its line, its column and what to write instead, and nothing is changed."""

import pytest

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from configuration import document
from configuration.apply import apply
from configuration.document import ConfigurationError
from configuration.export import export
from configuration.plan import plan
from rules.models import Rule
from servers.models import AuthType
from tests import make
from tests.cases import sampled

pytestmark = pytest.mark.django_db

SERVER = "version: 1\nservers:\n  - slug: crm\n    name: CRM\n    url: https://93.184.216.34/mcp\n"
GATEWAY = "version: 1\ngateways:\n  - slug: new\n    name: New\n"
ON_OPEN = "version: 1\ngateways:\n  - slug: open\n    name: open\n    servers:\n      - server: docs\n"

SINK = "version: 1\nsinks:\n  - name: Logs\n    kind: otlp\n    address: https://10.1.1.1/in\n"
RULE = "version: 1\nrules:\n  - name: Large\n    effect: refuse\n"

# The file, the position of the mistake, and a part of the message.
MISTAKES: dict[str, tuple[str, str, str]] = {
    "empty file": ("", "1:1", "Begin it with “version: 1”."),
    "list at the top": ("- version: 1\n", "1:1", "Begin it with “version: 1”."),
    "unclosed bracket": ("version: 1\nteams: [\n", "3:1", "Check indentation, quotes and colons"),
    "tab": ("version: 1\nteams:\n\t- name: A\n", "3:1", "Check indentation"),
    "wrong indentation": ("version: 1\nteams:\n  - name: A\n   x: 1\n", "4:4", "Check indentation"),
    "unclosed quote": ("version: 1\nsource: 'x\n", "3:1", "Check indentation, quotes"),
    "control character": ("version: 1\nsource: a\x07b\n", "2:10", "U+0007"),
    "escaped surrogate": ('version: 1\nsource: "a\\ud800b"\n', "2:9", "cannot be stored. Remove it."),
    "line break after a slug": (GATEWAY.replace("new", "|\n      new"), "3:11", "Write "),
    "alias": ("version: 1\nteams: &t []\nroles: *t\n", "3:8", "Write the values out."),
    "merge": ("version: 1\nworkspace: {<<: *x}\n", "2:17", "Write the values out."),
    "two documents": ("version: 1\n---\nversion: 1\n", "2:1", "Remove the line “---”"),
    "tag": ("version: !!python/name:os.system 1\n", "1:10", "Remove it."),
    "tag of a list": ("version: 1\nteams: !!set {}\n", "2:8", "Remove it."),
    "field twice": ("version: 1\nteams: []\nteams: []\n", "3:1", "“teams” is already in line 2."),
    "key that is a list": ("version: 1\n? [a]\n: b\n", "2:3", "Write “name: value”."),
    "deep nesting": ("version: 1\nteams: " + "[" * 2000 + "]" * 2000, "1:1", "nested too deeply"),
    "no version": ("teams: []\n", "1:1", "Add “version: …”."),
    "another version": ("version: 2\n", "1:10", "Write “version: 1”."),
    "version as text": ("version: '1'\n", "1:10", "Write “version: 1”."),
    "unknown list": ("version: 1\nteam: []\n", "2:1", "Write “teams”."),
    "people": ("version: 1\nusers: []\n", "2:1", "Users cannot be in configuration files. Remove the list."),
    "list that is text": ("version: 1\nteams: Engineering\n", "2:8", "Write a list of teams, or [] for none."),
    "list that is empty": ("version: 1\nteams:\n", "2:7", "Write a list of teams, or [] for none."),
    "item that is text": ("version: 1\nteams:\n  - Sales\n", "3:5", "Write the fields of the object"),
    "no name": ("version: 1\nteams:\n  - {}\n", "3:5", "“name” is missing. Add “name: …”."),
    "empty name": ("version: 1\nteams:\n  - name: ''\n", "3:11", "Write one line of at most 80 characters"),
    "number as a name": ("version: 1\nteams:\n  - name: 12\n", "3:11", "is the number 12. Write one line"),
    "blank at the end": ("version: 1\nteams:\n  - name: 'A '\n", "3:11", "without blanks at its ends"),
    "NUL": ('version: 1\nteams:\n  - name: "a\\0b"\n', "3:11", "cannot be stored. Remove it."),
    "long name": (f"version: 1\nteams:\n  - name: {'x' * 81}\n", "3:11", "at most 80 characters"),
    "name twice": ("version: 1\nteams:\n  - name: A\n  - name: A\n", "4:11", "team A is already in gateway.yaml:3:5."),
    "name in another case": ("version: 1\nteams:\n  - name: engineering\n", "3:11", "There is team Engineering"),
    "names in two cases": ("version: 1\nteams:\n  - name: A\n  - name: a\n", "4:11", "There is team A"),
    "unknown field": (
        "version: 1\nteams:\n  - name: A\n    people: []\n",
        "4:5",
        "There is no field “people” in “teams”.",
    ),
    "unknown permission": (
        "version: 1\nroles:\n  - name: R\n    capabilities: [gateways:reed]\n",
        "4:20",
        "“gateways:reed” is not a value of “capabilities”. Write a list of: ",
    ),
    "permission twice": (
        "version: 1\nroles:\n  - name: R\n    capabilities: [logs:read, logs:read]\n",
        "4:19",
        "A value is in “capabilities” twice.",
    ),
    "permissions of Super admin": (
        "version: 1\nroles:\n  - name: Super admin\n    capabilities: []\n",
        "4:19",
        "Remove the field.",
    ),
    "number out of range": ("version: 1\nworkspace:\n  log_retention_days: 0\n", "3:23", "from 1 to 3,650"),
    "text as a number": ("version: 1\nworkspace:\n  log_retention_days: a week\n", "3:23", "Write a whole number"),
    "fraction": ("version: 1\nworkspace:\n  log_retention_days: 1.5\n", "3:23", "Write a whole number"),
    "yes": ("version: 1\nworkspace:\n  record_payloads: yes\n", "3:20", "is text. Write true or false."),
    "quoted true": ("version: 1\nworkspace:\n  record_payloads: 'true'\n", "3:20", "Write true or false."),
    "null for a switch": ("version: 1\nworkspace:\n  record_payloads:\n", "3:19", "is empty. Write true or false."),
    "limit of none": ("version: 1\nworkspace:\n  calls_per_minute: 0\n", "3:21", "or null for no limit"),
    "unknown choice": (
        "version: 1\nworkspace:\n  new_app_policy: ask\n",
        "3:19",
        "Write one of: allow, approve.",
    ),
    "workspace as a list": ("version: 1\nworkspace: []\n", "2:12", "Write the fields of the object"),
    "slug with a capital": (SERVER.replace("slug: crm", "slug: CRM"), "3:11", "such as “my-server”"),
    "long slug": (SERVER.replace("slug: crm", "slug: customer-relations"), "3:11", "at most 16"),
    "reserved slug": (SERVER.replace("slug: crm", "slug: add"), "3:11", "Choose another."),
    "slug of a server that is archived": (SERVER.replace("slug: crm", "slug: gone"), "3:11", "never used again"),
    "no URL": ("version: 1\nservers:\n  - slug: crm\n    name: CRM\n", "3:5", "“url” is missing."),
    "URL of another scheme": (SERVER.replace("https", "ftp"), "5:10", "https"),
    "command as a URL": (SERVER.replace("https://93.184.216.34/mcp", "npx server"), "5:10", "or enter a"),
    "private address": (SERVER.replace("93.184.216.34", "10.0.0.1"), "5:10", "private"),
    "no header name": (SERVER + "    auth_type: header\n", "3:5", "header"),
    "scopes in an odd form": (SERVER + "    fixed_scopes: 'a  b'\n", "6:19", "Write a b instead of a  b."),
    "half of the endpoints": (SERVER + "    token_endpoint: https://93.184.216.34/t\n", "6:21", "or neither"),
    "name of another server": (SERVER.replace("name: CRM", "name: docs"), "3:11", "write “slug: docs”"),
    "changed slug of a gateway": (GATEWAY.replace("name: New", "name: open"), "3:11", "write “slug: open”"),
    "unknown team": (GATEWAY + "    reach: teams\n    teams: [Sales]\n", "6:13", "There is no team “Sales”"),
    "team in another case": (GATEWAY + "    reach: teams\n    teams: [engineering]\n", "6:13", "Write it like this."),
    "no team": (GATEWAY + "    reach: teams\n", "3:5", "Name a team, or write “reach: everyone”."),
    "teams of everyone": (GATEWAY + "    teams: [Engineering]\n", "5:12", "Write “reach: teams”, or “teams: []”."),
    "request days": (GATEWAY + "    request_days: 91\n", "5:19", "Write at most 90"),
    "unknown server": (ON_OPEN.replace("docs", "dox"), "6:17", "There is no server “dox”"),
    "server without a credential": (ON_OPEN + "        identity_scheme: none\n", "7:26", "Write per_user or shared."),
    "shared without a label": (ON_OPEN + "        identity_scheme: shared\n", "6:9", "Write a shared_identity"),
    "unknown label": (
        ON_OPEN + "        identity_scheme: shared\n        shared_identity: CI\n",
        "8:26",
        "Add it on the server's page first.",
    ),
    "alias with a blank": (ON_OPEN + "        alias: a b\n", "7:16", "only for the sole server"),
    "alias twice": (ON_OPEN + "      - server: docs\n", "7:9", "is already in gateway.yaml:6:9."),
    "both lists of tools": (
        ON_OPEN + "        enabled_tools: [a]\n        disabled_tools: [b]\n",
        "8:25",
        "not both",
    ),
    "another server behind an alias": (
        ON_OPEN.replace("server: docs", "server: wiki\n        alias: docs"),
        "6:17",
        "“server” cannot change",
    ),
    "unknown zone": ("version: 1\nworkspace:\n  zone: Berlin\n", "3:9", "Write it like Europe/Berlin."),
    "rule without an effect": ("version: 1\nrules:\n  - name: Large\n", "3:5", "“effect” is missing."),
    "unknown effect": (RULE.replace("refuse", "deny"), "4:13", "Write one of: refuse, hold, label."),
    "effect of a tool": (RULE + "    tool_effect: writing\n", "5:18", "Write one of: “”, read_only, destructive."),
    "rule of an unknown gateway": (RULE + "    gateway: other\n", "5:14", "There is no gateway “other”"),
    "rule on an unknown server": (RULE + "    servers: [docs, dox]\n", "5:21", "There is no server “dox”"),
    "rule of an unknown team": (
        RULE.replace("refuse", "hold") + "    approvers: team\n    approver_team: Sales\n",
        "6:20",
        "There is no team “Sales”",
    ),
    "hold without its team": (
        RULE.replace("refuse", "hold") + "    approvers: team\n",
        "3:5",
        "Choose the team that decides.",
    ),
    "nobody decides": (
        RULE.replace("refuse", "hold") + "    approvers: person\n    somebody_else: true\n",
        "6:20",
        "Do not require somebody else to decide: the approver is the person",
    ),
    "minutes of a refusal": (RULE + "    hold_minutes: 30\n", "5:19", "Only rules with “effect: hold” have"),
    "too many minutes": (RULE.replace("refuse", "hold") + "    hold_minutes: 1441\n", "5:19", "from 1 to 1,440"),
    "team of anybody": (
        RULE.replace("refuse", "hold") + "    approver_team: Engineering\n",
        "5:20",
        "Only rules with “approvers: team” have",
    ),
    "label without text": (RULE.replace("refuse", "label"), "3:5", "Enter the label, without a comma."),
    "label with a comma": (RULE.replace("refuse", "label") + "    text: a, b\n", "5:11", "without a comma"),
    "condition that does not parse": (RULE + "    when: 'args.amount >'\n", "5:11", "Line 1, column"),
    "condition on an unknown field": (
        RULE + "    when: |\n      true &&\n      amount > 5\n",
        "5:11",
        "Line 2, column 1",
    ),
    "tool name twice": (RULE + "    tools: [a, a]\n", "5:12", "twice"),
    "rule in another case": (RULE.replace("Large", "known"), "3:11", "There is rule Known"),
    "rule twice": (
        RULE + "  - name: Large\n    effect: refuse\n",
        "5:11",
        "rule Large is already in gateway.yaml:3:5.",
    ),
    "private address of a sink": (SINK, "5:14", "10.1.1.1 is private or reserved"),
    "order of a rule": (RULE + "    position: 1\n", "5:5", "There is no field “position”"),
}


@pytest.fixture
def owner() -> User:
    """A person with every capability, in a workspace with an object of each kind."""
    make.built_in_roles()
    owner = make.user(*Capability)
    Team.objects.create(name="Engineering")
    docs = make.server(slug="docs", auth_type=AuthType.BEARER)
    make.server(slug="wiki")
    gone = make.server(slug="gone")
    gone.archived_at = owner.date_joined
    gone.save()
    Rule.objects.add(name="Known", effect="refuse", by=None)
    make.assignment(make.gateway(slug="open"), docs, identity_scheme="per_user")
    return owner


@pytest.mark.parametrize("step", sampled(15))
def test_a_mistake_is_reported_with_its_place_and_changes_nothing(
    step: int, owner: User, subtests: pytest.Subtests
) -> None:
    before, events = export(owner), Event.objects.count()
    for name in [*MISTAKES][::step]:
        with subtests.test(name):
            text, place, message = MISTAKES[name]
            with pytest.raises(ConfigurationError) as refused:
                apply(document.read({"gateway.yaml": text}), by=owner)
            reported = "\n".join(map(str, refused.value.mistakes))
            assert f"gateway.yaml:{place}: " in reported
            assert message in reported
            assert (export(owner), Event.objects.count()) == (before, events)


def test_all_mistakes_of_a_file_are_reported_at_once(owner: User) -> None:
    text = GATEWAY + "    reach: teams\n    teams: [Sales, Support]\n    servers: [{server: dox}]\n"

    with pytest.raises(ConfigurationError) as refused:
        apply(document.read({"gateway.yaml": text}), by=owner)

    assert [(one.at.line, one.at.column) for one in refused.value.mistakes] == [(6, 13), (6, 20), (7, 24)]


def test_a_name_in_two_files_is_reported_with_both(owner: User) -> None:
    one, other = ("version: 1\nteams:\n  - name: A\n" for _ in range(2))

    with pytest.raises(ConfigurationError, match=r"b\.yaml:3:11: team A is already in a\.yaml:3:5"):
        apply(document.read({"a.yaml": one, "b.yaml": other}), by=owner)


class Compared(int):
    """An integer; `Compared.times` counts the comparisons of all such integers."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)

    __hash__ = int.__hash__


def test_a_long_list_of_mixed_values_is_not_compared_pair_by_pair(owner: User) -> None:
    servers = [{"server": "a", "disabled_tools": ["a", *map(Compared, range(1000))]}]
    gateways = [{"slug": "a", "name": "A", "servers": servers}]

    with pytest.raises(ConfigurationError) as refused:
        plan(document.ConfigDocument(["gateway.yaml"], {"version": 1, "gateways": gateways}), owner)

    assert len(refused.value.mistakes) == document.MOST_PROBLEMS
    assert Compared.times < 10_000


@pytest.mark.parametrize(
    "others", ["{name: Engineering}", "{name: B, moved: {from: Engineering, to: B}}"], ids=["kept", "renamed twice"]
)
def test_an_object_has_one_entry_even_while_it_is_renamed(owner: User, others: str) -> None:
    text = f"version: 1\nsource: s\nteams:\n  - {{name: A, moved: {{from: Engineering, to: A}}}}\n  - {others}\n"

    with pytest.raises(ConfigurationError, match="is renamed here and also has another entry"):
        plan(document.read({"gateway.yaml": text}), owner)


def test_a_rename_may_change_only_upper_and_lower_case(owner: User) -> None:
    text = "version: 1\nteams:\n  - {name: ENGINEERING, moved: {from: Engineering, to: ENGINEERING}}\n"

    apply(document.read({"gateway.yaml": text}), by=owner)

    assert "ENGINEERING" in [team.name for team in Team.objects.all()]
