"""The OAuth doctor: goes the way of a client, over real HTTP, and says at which step, header and reason it ends."""

from gatewayadmin.doctor.oauth_check import OAuthCheck
from gatewayadmin.doctor.report import Step, passed

__all__ = ["OAuthCheck", "Step", "passed"]
