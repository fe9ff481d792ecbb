"""Which keys are still needed: a rotated key may go when nothing uses it any more."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Count, QuerySet

from accounts import second_factor
from accounts.models import ApiKey
from gatewayadmin import database
from gatewayadmin.database import Unusable
from servers import crypto
from servers.models import Identity
from tokens import secret
from tokens.models import Token


class Command(BaseCommand):
    help = "List the ids of the token and encryption keys, and how much each one still holds."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            database.require()
        except Unusable as error:
            raise CommandError(str(error)) from error
        tokens = _uses(Token.objects.live()) + _uses(ApiKey.objects.filter(revoked_at=None))
        self._list("GATEWAY_TOKEN_KEYS", [secret.key_id(key) for key in settings.TOKEN_KEYS], tokens)
        sealed = [crypto.key_id(key) for key in settings.ENCRYPTION_KEYS]
        secrets = _uses(Identity.objects.exclude(secret_ciphertext=None)) + second_factor.key_uses()
        self._list("GATEWAY_ENCRYPTION_KEYS", sealed, secrets)

    def _list(self, variable: str, present: Sequence[str], uses: Counter[str]) -> None:
        self.stdout.write(variable)
        for place, key_id in enumerate(present):
            use = "newest, in use" if place == 0 else "still needed" if uses[key_id] else "may be removed"
            self.stdout.write(f"  {key_id}  {uses[key_id]:>6}  {use}")
        for key_id in sorted(uses.keys() - set(present)):
            self.stdout.write(f"  {key_id}  {uses[key_id]:>6}  MISSING: what it holds cannot be used")


def _uses(rows: QuerySet[Any]) -> Counter[str]:
    return Counter(dict(rows.values_list("key_id").annotate(Count("pk")).order_by()))
