"""docs/how-to/provision-people.md, run as printed against a running workspace."""

import re
import subprocess

import pytest

from tests.docs.pages import ROOT
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.full

PAGE = (ROOT / "docs/how-to/provision-people.md").read_text()
BLOCK = re.compile(r"<!-- script -->\n```bash\n(.*?)```", re.DOTALL)

MAKE_KEY = """
from accounts.models import Role, User
from scim.models import ProvisioningKey
role = Role.objects.get(name="Member")
owner = User.objects.get(email={owner!r})
print(ProvisioningKey.objects.issue(name="Okta", role=role, capabilities=role.capabilities, by=owner).secret)
"""


def test_the_script_works_as_printed(live_alone: Serve) -> None:
    live = live_alone.start()
    key = live.manage("shell", "--verbosity", "0", "-c", MAKE_KEY.format(owner=OWNER)).strip()
    script = "\n".join(BLOCK.findall(PAGE)).replace("https://gateway.example.com", live.url).replace("gwd_...", key)

    done = subprocess.run(["bash", "-c", script], env=live.environment(), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "found: Ann",
        "members of Writers: 1",
        "active: false",
        "active: true",
        "left: 0",
    ]
    (person,) = live.rows("SELECT is_active FROM accounts_user WHERE email = 'ann@example.com'")
    assert person["is_active"] is False
    told = live.rows("SELECT DISTINCT actor_email, via FROM auditlog_event WHERE target_label = 'ann@example.com'")
    assert [(one["actor_email"], one["via"]) for one in told] == [(f"provisioning key Okta ({key[:12]})", "scim")]
    assert key not in live.log()
