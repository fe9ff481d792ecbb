"""The secret of a runner is sent only to the URLs of the runner's programs."""

import pytest

from tests.runners import SECRET
from wire.guard import Guard, UrlRefused
from wire.runner import Runner

RUNNER = Runner("http://127.0.0.1:8081", SECRET)


def test_the_endpoint_of_a_program_is_one() -> None:
    url = "http://127.0.0.1:8081/files/mcp"

    assert RUNNER.program_at(url) == "files"
    assert Guard(runner=RUNNER).check_now(url), "it counts as private"


def test_a_name_that_may_be_found_elsewhere_gets_no_secret() -> None:
    runner = Runner("http://gateway-runner.tools:8900", SECRET)

    assert runner.program_at("http://gateway-runner.tools:8900/files/mcp") == "files"
    for host in ("gateway-runner.tools.", "gateway-runner%2etools", "GATEWAY-RUNNER.tools"):
        assert runner.program_at(f"http://{host}:8900/files/mcp") is None


def test_no_other_address_gets_the_secret_or_is_allowed_by_it() -> None:
    for url in (
        "http://127.0.0.1:8082/files/mcp",
        "http://127.1:8081/files/mcp",
        "HTTP://127.0.0.1:8081/files/mcp",
        "https://127.0.0.1:8081/files/mcp",
        "http://127.0.0.2:8081/files/mcp",
        "http://localhost:8081/files/mcp",
        "http://127.0.0.1:8081@10.0.0.1/files/mcp",
        "http://user@127.0.0.1:8081/files/mcp",
        "http://10.0.0.1\\@127.0.0.1:8081/files/mcp",
        "http://127.0.0.1:8081/mcp",
        "http://127.0.0.1:8081/programs",
        "http://127.0.0.1:8081/files/mcp/",
        "http://127.0.0.1:8081/files/mcp?x=1",
        "http://127.0.0.1:8081/files/../programs/mcp",
        "http://127.0.0.1:8081/%2e%2e/mcp",
        "http://127.0.0.1:8081/files/mcp\n",
        "http://127.0.0.1:port/files/mcp",
        "builtin:quickstart",
    ):
        assert RUNNER.program_at(url) is None, url
        with pytest.raises(UrlRefused):
            Guard(runner=RUNNER).check_url(url)


def test_the_secret_is_in_no_text_and_the_address_of_a_person_fits_a_header() -> None:
    assert SECRET not in repr(RUNNER)
    assert RUNNER.headers("añ%a+b@example.com")["X-Gateway-User"] == "a%C3%B1%25a+b@example.com"
    assert RUNNER.headers() == {"Authorization": f"Bearer {SECRET}", "X-Gateway-User": "gateway"}
