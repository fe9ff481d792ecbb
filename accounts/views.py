"""One's own account."""

from __future__ import annotations

from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.forms import THEMES, ProfileForm
from capabilities import signed_in
from ui.pages import AppRequest, leave, posted, show

YEAR_S = 365 * 24 * 3600


@require_http_methods(["GET", "POST"])
@signed_in("one's own name and theme")
def profile(request: AppRequest) -> HttpResponse:
    theme = request.COOKIES.get("theme", "")
    initial = {"display_name": request.user.display_name, "theme": theme if theme in dict(THEMES) else "system"}
    form = ProfileForm(posted(request), initial=initial)
    if request.method == "GET":
        return show(request, "accounts/profile.html", {"form": form})
    if not form.is_valid():
        return show(request, "accounts/profile.html", {"form": form}, status=422)
    request.user.display_name = form.cleaned_data["display_name"]
    request.user.save(update_fields=["display_name"])
    response = leave(request, reverse("accounts:profile"), "Profile saved")
    response.set_cookie("theme", form.cleaned_data["theme"], max_age=YEAR_S, samesite="Lax")
    return response
