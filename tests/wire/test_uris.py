"""A resource URI for clients, also one made from a template, maps back to the server's own URI."""

from urllib.parse import quote

from wire.rewriting import (
    MatchBudget,
    alias_and_uri,
    exposed_template,
    exposed_uri,
    may_hold_exposed,
    own_uri,
    template_matches,
    with_exposed_uris,
)

URIS = (
    "docs://handbook",
    "file:///a%20b/(x)?y=1#z",
    "ü://日",
    "gateway://other/x",
    "ui://page",
    "a",
    "%",
    "((",
    "\ud83d",
)


def test_a_uri_comes_back_as_it_went_out_in_the_documented_form() -> None:
    for uri in URIS:
        given = exposed_uri("docs", uri)

        assert given.startswith("ui://gateway/docs/" if uri.startswith("ui://") else "gateway://docs/"), uri
        assert alias_and_uri(given) == ("docs", uri)
        assert exposed_uri("", uri) == uri
    assert exposed_uri("docs", "docs://hand book") == "gateway://docs/docs%3A%2F%2Fhand%20book"
    assert alias_and_uri("docs://handbook") == ("", "docs://handbook")
    assert exposed_template("", "docs://(page)/{id}") == "docs://(page)/{id}"


def test_an_expanded_template_means_what_the_servers_own_template_expands_to() -> None:
    templates = {
        "docs://page/{id}/data": {"{id}": "a%20b%2Fc"},  # The value "a b/c", RFC 6570 section 3.2.2.
        "docs://{+path}{?q,n}": {"{+path}": "a/b(c)", "{?q,n}": "?q=x%26y&n=1"},
        "docs://{a}{b}{#f}": {"{a}": "1", "{b}": "", "{#f}": "#top"},
    }
    for template, expansions in templates.items():
        given, own = exposed_template("docs", template), template
        for expression, expansion in expansions.items():
            given, own = given.replace(expression, expansion), own.replace(expression, expansion)

        assert alias_and_uri(given) == ("docs", own)
        assert alias_and_uri(exposed_template("docs", template)) == ("docs", template)
        assert template_matches(template, own, narrowly=False)


def test_a_simple_expression_stands_for_one_segment_when_it_has_to_be_certain() -> None:
    assert template_matches("docs://{id}", "docs://a", narrowly=True)
    assert not template_matches("docs://{id}", "docs://a/b", narrowly=True)
    assert template_matches("docs://{id}", "docs://a/b", narrowly=False)
    assert template_matches("docs://{+path}/end", "docs://a/b/end", narrowly=True)
    assert not template_matches("docs://{id}/end", "docs://a/b", narrowly=False)
    assert not template_matches("docs://{id}", "other://a", narrowly=False)


def test_two_simple_expressions_stand_for_one_segment_between_them() -> None:
    matches = {
        ("docs://{a}{b}", "docs://ab"): True,
        ("docs://{a}{b}/end", "docs://ab/end"): True,
        ("docs://{a}{b}", "docs://a/b"): False,
        ("docs://{a}-{b}", "docs://a-b-c"): True,
        ("docs://{a}-{b}", "docs://abc"): False,
    }

    assert {(template, uri): template_matches(template, uri, narrowly=True) for template, uri in matches} == matches


def test_a_template_with_very_many_expressions_may_mean_anything_and_certainly_means_nothing() -> None:
    assert template_matches("{a}" * 300 + "!", "a" * 8_000, narrowly=False)
    assert not template_matches("{a}" * 300 + "!", "aaa!", narrowly=True)


def test_every_place_a_uri_is_given_out_in_is_mapped_and_nothing_else() -> None:
    given = {
        "content": [
            {"type": "resource_link", "uri": "docs://a", "name": "a", "_meta": {"uri": "docs://kept"}},
            {"type": "resource", "resource": {"uri": "docs://b", "text": "docs://kept"}},
            {"type": "text", "text": "docs://kept"},
        ],
        "messages": [{"role": "user", "content": {"type": "resource", "resource": {"uri": "docs://c", "blob": ""}}}],
        "contents": [{"uri": "docs://d", "text": ""}],
        "structuredContent": {"uri": "docs://kept"},
        "_meta": {"ui": {"resourceUri": "ui://page", "x": 1}, "ui/resourceUri": "ui://page"},
    }

    shown = with_exposed_uris(given, "docs")

    assert [item.get("uri") for item in shown["content"]] == ["gateway://docs/docs%3A%2F%2Fa", None, None]
    assert shown["content"][1]["resource"]["uri"] == "gateway://docs/docs%3A%2F%2Fb"
    assert shown["messages"][0]["content"]["resource"]["uri"] == "gateway://docs/docs%3A%2F%2Fc"
    assert shown["contents"][0]["uri"] == "gateway://docs/docs%3A%2F%2Fd"
    assert shown["_meta"] == {
        "ui": {"resourceUri": "ui://gateway/docs/ui%3A%2F%2Fpage", "x": 1},
        "ui/resourceUri": "ui://gateway/docs/ui%3A%2F%2Fpage",
    }
    assert str(shown).count("docs://kept") == 4
    assert with_exposed_uris(given, "") is given
    plain = {"content": [{"type": "text", "text": ""}]}
    assert with_exposed_uris(plain, "docs") is plain


def test_a_link_to_the_web_stays_as_it_is_and_a_resource_at_the_web_does_not() -> None:
    web = "HTTPS://example.com/a"
    given = {
        "content": [
            {"type": "resource_link", "uri": web},
            {"type": "resource_link", "uri": "http://example.com"},
            {"type": "resource", "resource": {"uri": web, "text": ""}},
        ]
    }

    shown = with_exposed_uris(given, "docs")["content"]

    assert shown[:2] == given["content"][:2]
    assert shown[2]["resource"]["uri"] == exposed_uri("docs", web)


def test_an_argument_that_is_a_uri_of_the_server_becomes_its_own_wherever_it_stands() -> None:
    mine, page, theirs = exposed_uri("docs", "docs://a?b"), exposed_uri("docs", "ui://a"), exposed_uri("other", "x://a")
    given = {"uri": mine, "all": [[page, theirs, 1, None]], mine: f"see {mine}"}

    assert own_uri(given, "docs") == {"uri": "docs://a?b", "all": [["ui://a", theirs, 1, None]], mine: f"see {mine}"}


def test_a_body_with_a_uri_that_was_given_out_is_known_by_its_bytes() -> None:
    for uri in ("docs://a", "ui://a"):
        given, own = f'{{"uri":"{exposed_uri("docs", uri)}"}}', f'{{"uri":"{uri}"}}'
        for slash in ("/", "\\/"):
            assert may_hold_exposed(given.replace("/", slash).encode())
            assert not may_hold_exposed(own.replace("/", slash).encode())


def test_a_uri_is_encoded_as_the_standard_library_does() -> None:
    for text in ("", "a b%20c", "\ud83d\ude00", "".join(map(chr, range(300))), "\N{SNOWMAN}:%3A" * 9):
        assert exposed_uri("a", text) == f"gateway://a/{quote(text, safe='', errors='surrogatepass')}"


def test_nesting_beyond_a_results_depth_passes_unchanged() -> None:
    deep: dict[str, object] = {"uri": "docs://deep"}
    for _ in range(900):
        deep = {"resource": deep}

    assert with_exposed_uris(deep, "docs") is deep
    assert own_uri({"arguments": deep}, "docs") == {"arguments": deep}


def test_templates_for_which_no_steps_are_left_match_nothing_narrowly_and_anything_else() -> None:
    costly, uri = "{+a}" + "a{b}" * 18, "a" * 2_000
    budget = MatchBudget(5_000)

    assert template_matches(costly, uri, narrowly=True)
    assert [template_matches(costly, uri, narrowly=True, budget=budget) for _ in range(2)] == [False, False]
    assert template_matches(costly, uri, narrowly=False, budget=budget)
    assert template_matches("docs://{id}", "docs://a", narrowly=True)
