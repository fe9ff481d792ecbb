"""The commands of docs/how-to/send-the-logs.md, run as printed but for where things are."""

import re
from pathlib import Path

from tests.docs.pages import ROOT
from tests.docs.test_how_tos import shell
from tests.workspace import OWNER, Serve

PAGE = (ROOT / "docs" / "how-to" / "send-the-logs.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
# Addresses that need no look-up of a name.
PLACES = {
    "https://logs.example.com": "https://93.184.215.14",
    "https://s3.eu-central-1.amazonaws.com": "https://93.184.215.15",
    "https://collector.example.com": "https://93.184.215.16",
    "one.example.com:9093,two.example.com:9093": "93.184.215.17:9093,93.184.215.18:9093",
}
MAKE_KEY = """
from accounts.models import User
from capabilities import Capability
from tokens.api_keys import issue
owner = User.objects.get(email="{owner}")
print(issue(name="Sinks", capabilities=[*Capability], days=7, by=owner).secret)
"""


def test_a_sink_of_each_kind_is_made_as_printed(live: Serve, tmp_path: Path) -> None:
    key = live.manage("shell", "--verbosity", "0", "-c", MAKE_KEY.format(owner=OWNER)).strip()
    secrets = {"ACCESS_KEY": "an-id:a-secret", "TOKEN": "of-a-collector", "USER_AND_PASSWORD": "gateway:secret"}
    made = [script for script in BLOCKS if script.startswith("curl")]
    try:
        for script in made:
            placed = script
            for printed, place in PLACES.items():
                placed = placed.replace(printed, place)
            assert "example.com" not in placed
            shell(placed, tmp_path, GATEWAY=live.url, API_KEY=key, **secrets)

        code = "from sinks.models import Sink\nprint(*sorted(f'{one.kind}:{one.name}' for one in Sink.objects.all()))"
        said = live.manage("shell", "--no-imports", "-c", code).split()
        assert said == ["kafka:Kafka", "otlp:Collector", "s3:Bucket", "webhook:Archive"]
        assert len(made) == len(said)
    finally:
        live.manage("shell", "--no-imports", "-c", "from sinks.models import Sink\nSink.objects.all().delete()")
