"""Small pieces of markup that every page uses."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django import forms
from django.template import Context, Template
from django.utils import timezone

from ui.templatetags.ui import grouped, inline

NOW = datetime(2026, 11, 20, 14, 2, 8, tzinfo=UTC)


def rendered(text: str, **values: object) -> str:
    return Template("{% load ui %}" + text).render(Context(values)).strip()


def test_ages_and_remaining_times_are_in_the_largest_unit_that_fits_and_carry_the_moment() -> None:
    ages = {
        timedelta(seconds=59): "just now",
        timedelta(minutes=5, seconds=30): "5m ago",
        timedelta(hours=3, minutes=59): "3h ago",
        timedelta(days=6, hours=23): "6d ago",
        timedelta(days=8): "Nov 12, 2026",
    }
    remaining = {
        timedelta(days=2, hours=23): "2d",
        timedelta(hours=23, minutes=59): "23h",
        timedelta(minutes=1): "1m",
        timedelta(seconds=30): "0m",
        timedelta(days=-1): "0m",
    }
    with time_machine.travel(NOW, tick=False):
        for age, words in ages.items():
            assert f">{words}</time>" in rendered("{% ago moment %}", moment=timezone.now() - age)
        for ahead, words in remaining.items():
            assert f">{words}</time>" in rendered("{% left moment %}", moment=timezone.now() + ahead)
    assert rendered("{% ago moment %}", moment=None) == "Never"
    assert rendered("{% day moment %}", moment=NOW) == (
        '<time datetime="2026-11-20T14:02:08Z" title="Nov 20, 2026 14:02:08 UTC">Nov 20, 2026</time>'
    )


def test_badges_and_shortened_names_are_escaped_and_names_carry_the_whole_name() -> None:
    name = "Refunds & returns"

    assert rendered("{{ name|short }}", name=name) == "Refunds &amp; returns"
    assert rendered("{{ name|short:8 }}", name=name) == '<span title="Refunds &amp; returns">Refunds…</span>'
    assert rendered('{% badge "active" %}') == '<span class="badge" data-state="active">active</span>'
    assert "&lt;b&gt;" in rendered("{% badge state %}", state="<b>")


@pytest.mark.full
def test_invisible_characters_are_marked_and_very_many_are_counted() -> None:
    assert rendered("{{ said|visible }}", said="a\u200b<b>") == (
        'a<mark class="unseen" title="ZERO WIDTH SPACE">U+200B</mark>&lt;b&gt;'
    )
    many = rendered("{{ said|visible }}", said="<" + "\u200b" * 20_000 + ">the end")
    assert many.startswith("&lt;<mark")
    assert many.endswith('&gt;the end<mark class="unseen">and 19,500 more</mark>')
    assert "\u200b" not in many
    assert len(many) < 50_000

    assert rendered("{{ said|marked }}", said="a\u200b<b>") == "a[U+200B]&lt;b&gt;"
    plain = rendered("{{ said|marked }}", said="\u200b" * 20_000 + "the end")
    assert plain.endswith("the end[and 19,500 more]")
    assert len(plain) < 10_000


def test_names_on_a_screen_and_code_stand_out_and_markup_stays_text() -> None:
    shown = {
        "`a*b`, *one* and *<b>*": "<code>a*b</code>, <i>one</i> and <i>&lt;b&gt;</i>",
        "2 * 3, *": "2 * 3, *",
        '`<script>` & "': "<code>&lt;script&gt;</code> &amp; &quot;",
    }
    assert {text: inline(text) for text in shown} == shown


class Trial(forms.Form):
    name = forms.CharField(help_text="Shown in logs.")


def test_a_field_ties_its_error_and_help_to_the_control() -> None:
    html = rendered("{% field form.name %}", form=Trial({"name": ""}))

    assert 'aria-invalid="true"' in html
    assert 'aria-describedby="id_name_helptext id_name_error"' in html
    assert 'id="id_name_error"' in html
    assert 'id="id_name_helptext"' in html


def test_counts_have_commas_and_other_values_stay() -> None:
    values: tuple[Any, ...] = (999, 1234567, "10,000+", None)
    assert [grouped(value) for value in values] == ["999", "1,234,567", "10,000+", None]
