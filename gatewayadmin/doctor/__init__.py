"""The OAuth doctor: goes the way of a client, over real HTTP, and says at which step, header and reason it ends."""

from gatewayadmin.doctor.report import Step, passed
from gatewayadmin.doctor.walk import Walk

__all__ = ["Step", "Walk", "passed"]
