"""The OAuth doctor: runs a client's OAuth flow over real HTTP and reports the step, header and reason it fails at."""

from gatewayadmin.doctor.oauth_check import OAuthCheck
from gatewayadmin.doctor.report import CheckStep, passed

__all__ = ["CheckStep", "OAuthCheck", "passed"]
