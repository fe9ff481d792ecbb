"""Forms of the pages of held calls: the filters of the lists, and the decision."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms

from accounts.models import User
from approvals.models import LONGEST_SENTENCE, AllowFor, Hold, HoldQuerySet, HoldState
from connections.models import LONGEST_HOLD_WAIT
from ui.forms import ListFilter


class HoldFilter(ListFilter):
    """Filter held calls by state and words.

    `show` selects the calls that wait for the viewer, or the calls of the viewer's agents.
    """

    radios: ClassVar[tuple[str, ...]] = ("show",)
    SHOWS = (("decide", "Waiting for you"), ("own", "Your agents"))
    DECIDED = tuple((state.value, state.label) for state in HoldState if state != HoldState.WAITING)
    show = forms.ChoiceField(required=False, label="Show", choices=SHOWS)
    state = forms.MultipleChoiceField(required=False, label="State", choices=DECIDED)

    def __init__(self, *args: Any, viewer: User, is_waiting: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self._viewer = viewer
        self._is_waiting = is_waiting
        if is_waiting:
            del self.fields["state"]
        else:
            self.fields["show"].choices = [self.SHOWS[1]]  # type: ignore[attr-defined]

    def narrow(self, rows: HoldQuerySet) -> HoldQuerySet:
        rows = (rows.waiting() if self._is_waiting else rows.decided()).matching(self.values.get("q", ""))
        if states := self.values.get("state"):
            rows = rows.filter(state__in=states)
        match self.values.get("show"):
            case "decide":
                return rows.to_decide(self._viewer)
            case "own":
                return rows.filter(user=self._viewer)
        return rows


class WaitForm(forms.Form):
    """The `hold_wait` of a connection: the number of seconds that the request of a held call stays open."""

    seconds = forms.IntegerField(
        required=False,
        min_value=0,
        max_value=LONGEST_HOLD_WAIT,
        label="Seconds",
        help_text="If empty, the gateway starts with 50 for clients that ask for progress, and with 4 for others. It "
        "sets a higher number after a client has waited more than a minute for an answer. If a client stops waiting "
        "before the time is over, the gateway lowers the number, even one that you set.",
    )


class DecisionForm(forms.Form):
    """The decision on one hold: approve or deny, a sentence for the agent, and which later calls are also allowed."""

    act = forms.ChoiceField(choices=[("approve", "Approve"), ("deny", "Deny")])
    sentence = forms.CharField(
        required=False,
        max_length=LONGEST_SENTENCE,
        label="Sentence for the agent",
        help_text="Optional. If you deny, the agent gets this sentence. If you approve, only people see it.",
    )
    allow = forms.ChoiceField(required=False, choices=AllowFor.choices, label="Also allow")
    names = forms.MultipleChoiceField(
        required=False,
        label="With the same",
        widget=forms.CheckboxSelectMultiple,
        help_text="Arguments that must have the values of this call. If you tick none, any arguments are allowed.",
    )

    def __init__(self, *args: Any, hold: Hold, **options: Any) -> None:
        super().__init__(*args, **options)
        arguments = hold.arguments or {}
        self.fields["names"].choices = [(name, name) for name in arguments]  # type: ignore[attr-defined]
