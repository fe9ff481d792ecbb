"""The OAuth doctor: runs a client's OAuth flow over real HTTP, and reports the step that fails and the reason."""

from gatewayadmin.doctor.http_probe import CheckStep, passed
from gatewayadmin.doctor.oauth_check import OAuthCheck

__all__ = ["CheckStep", "OAuthCheck", "passed"]
