"""The OAuth doctor: runs a client's OAuth flow over real HTTP and reports the step, header and reason it fails at."""

from gatewayadmin.doctor.oauth_check import OAuthCheck
from gatewayadmin.doctor.report import Step, passed

__all__ = ["OAuthCheck", "Step", "passed"]
