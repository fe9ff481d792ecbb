"""Forms of one's own account."""

from django import forms

THEMES = (("system", "Same as system"), ("light", "Light"), ("dark", "Dark"))


class ProfileForm(forms.Form):
    """Name and theme; the e-mail is changed by an administrator."""

    display_name = forms.CharField(label="Name", max_length=120, required=False)
    theme = forms.ChoiceField(choices=THEMES, help_text="Kept in this browser.")
