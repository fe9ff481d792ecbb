"""Fills the history of access with the present facts, and with earlier facts derived from admin events."""

from collections import defaultdict

from django.db import migrations
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone

AT_ONCE = 2_000
# The slugs of the permission to use all gateways: now, and in events of version 1.0, where it also allowed seeing them.
USES_ALL, USED_ALL = "gateways:use", "gateways:read"


class Walk:
    """Finds when facts of one kind were true: starts at the present facts, and goes back through the admin events.

    `steps` are the changes in admin events: (time, facts that ended, facts that began).
    """

    def __init__(self, kind, present):
        self.kind, self.present, self.steps = kind, present, []

    def add(self, at, ended, began):
        if ended != began:
            self.steps.append((at, ended - began, began - ended))

    def periods(self, gone):
        """Yield each fact with its start and end.

        The start is None if it is unknown. The end is None if the fact is true now.

        `steps` must be in order of time. For some ended facts, no step says when the fact ended. Such a fact ends when
        its team was deleted (from `gone`). If its team was not deleted, the fact ends at the next step, which may be
        about another fact.
        """
        true, later = dict.fromkeys(self.present), None
        for at, ended, began in reversed(self.steps):
            for fact in began:
                yield fact, at, true.pop(fact) if fact in true else gone.get(fact[1]) or later or at
            for fact in ended:
                true.setdefault(fact, at)
            later = at
        for fact, end in true.items():
            yield fact, None, end


class Names:
    """The ids of people, teams, roles and gateways by the names they had."""

    def __init__(self, apps, events):
        self._ids = defaultdict(dict)
        self.labels = {}
        for kind, pk, label in events.values_list("target_type", "target_id", "target_label").distinct():
            self._ids[kind][label.lower()] = pk
            self.labels[pk] = label
        for kind, app, column in (("team", "accounts", "name"), ("role", "accounts", "name"), ("user", "accounts", "email")):
            for pk, name in apps.get_model(app, kind).objects.values_list("pk", column):
                self._ids[kind][name.lower()] = str(pk)
                self.labels[str(pk)] = name

    def of(self, kind, names):
        """Return the ids of those names that are known."""
        known = self._ids[kind]
        return {known[name.lower()] for name in texts(names) if name.lower() in known}


def texts(told):
    """Return the texts in a value of an event, which may be one text, a list or nothing."""
    return [one for one in (told if isinstance(told, list) else [told]) if isinstance(one, str)]


def begin(apps, schema_editor):
    events = apps.get_model("auditlog", "Event").objects.filter(target_type__in=("user", "team", "role", "gateway"))
    events = events.exclude(changes={}).order_by("id")
    names = Names(apps, events.order_by())
    walks = {kind: Walk(kind, present) for kind, present in _present(apps).items()}
    split = MigrationRecorder.Migration.objects.filter(app="accounts", name="0002_split_capabilities").first()
    split_at = split.applied if split else timezone.now()
    gone = dict(events.filter(action="team.removed").values_list("target_id", "created_at"))
    for event in events.only("created_at", "target_type", "target_id", "changes").iterator(AT_ONCE):
        _read(event, walks, names, {USES_ALL, USED_ALL} if event.created_at < split_at else {USES_ALL})
    _store(apps, walks, names, gone)


def _present(apps):
    """Return what is true now, for each kind of fact, as pairs of subject and object (None if there is no object)."""
    user, team, role = (apps.get_model("accounts", name) for name in ("User", "Team", "Role"))
    gateway = apps.get_model("gateways", "Gateway")
    all_gateways = {"permissions__codename": "view_gateway", "permissions__content_type__app_label": "gateways"}
    members = team.users.through.objects.values_list("user_id", "team_id")
    open_to = gateway.teams.through.objects.values_list("gateway_id", "team_id")
    roles = user.objects.exclude(role=None).values_list("pk", "role_id")
    alone = {
        "everyone": gateway.objects.filter(reach="everyone"),
        "only_granted": gateway.objects.exclude(tools_given="all"),
        "superuser": user.objects.filter(is_superuser=True),
        "inactive": user.objects.filter(is_active=False),
        "only_looks": role.objects.filter(uses_gateways=False),
        "uses_all": role.objects.filter(**all_gateways),
    }
    pairs = {"member": members, "open_to": open_to, "role": roles}
    return {kind: {(str(one), str(other)) for one, other in rows} for kind, rows in pairs.items()} | {
        kind: {(str(pk), None) for pk in rows.values_list("pk", flat=True)} for kind, rows in alone.items()
    }


def _read(event, walks, names, uses_all):
    """Add the steps of one event."""
    about, changes = event.target_id, event.changes

    def pair(field):
        told = changes.get(field)
        return told if isinstance(told, list) and len(told) == 2 else None

    def add(kind, *sides):
        walks[kind].add(event.created_at, *sides)

    def alone(kind, *sides):
        add(kind, *({(about, None)} if side else set() for side in sides))

    match event.target_type:
        case "team" if told := pair("users"):
            add("member", *({(person, about) for person in names.of("user", side)} for side in told))
        case "gateway":
            if told := pair("teams"):
                add("open_to", *({(about, team) for team in names.of("team", side)} for side in told))
            if told := pair("reach"):
                alone("everyone", *(side == "everyone" for side in told))
            if told := pair("tools_given"):
                alone("only_granted", *(side == "granted" for side in told))
        case "user":
            if told := pair("role"):
                add("role", *({(about, role) for role in names.of("role", side)} for side in told))
            if told := pair("is_superuser"):
                alone("superuser", *(side is True for side in told))
            if told := pair("is_active"):
                alone("inactive", *(side is False for side in told))
        case "role":
            if told := pair("uses_gateways"):
                alone("only_looks", *(side is False for side in told))
            if told := pair("capabilities"):
                alone("uses_all", *(not uses_all.isdisjoint(texts(side)) for side in told))


def _store(apps, walks, names, gone):
    """Store the periods. If a period's start is unknown, use the time when its person or gateway was created."""
    fact = apps.get_model("access", "Fact")
    began = {str(pk): at for pk, at in apps.get_model("accounts", "User").objects.values_list("pk", "date_joined")}
    first = min(began.values(), default=timezone.now())
    began |= {str(pk): at for pk, at in apps.get_model("gateways", "Gateway").objects.values_list("pk", "created_at")}
    rows = []
    for walk in walks.values():
        for (subject, other), at, end in walk.periods(gone):
            at = at or began.get(subject, first)
            label = names.labels.get(other, "")[:80] if other else ""
            told = {"kind": walk.kind, "subject": subject, "object": other, "label": label, "from_events": True}
            if end is None or end > at:
                rows.append(fact(**told, began_at=at, ended_at=end))
    # The triggers may have begun the same fact meanwhile.
    fact.objects.bulk_create(rows, AT_ONCE, ignore_conflicts=True)


class Migration(migrations.Migration):
    dependencies = [("access", "0001_history"), ("auditlog", "0002_insert_only_and_partitions")]

    operations = [migrations.RunPython(begin, migrations.RunPython.noop, elidable=True)]
