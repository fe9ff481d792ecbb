"""A process that sends the logs like the chores process, until it is killed: `python -m tests.sinks.sender_process`."""

import os
import time
from datetime import timedelta
from ipaddress import ip_network

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")

import django


def run() -> None:
    django.setup()
    from django.conf import settings
    from django.db import connection

    from sinks import reading, receivers, sending

    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    settings.DATABASES["default"]["NAME"] = connection.settings_dict["NAME"] = os.environ["SENDER_DATABASE"]
    reading.MOST_ROWS = int(os.environ.get("SENDER_MOST_ROWS", "40"))
    receivers.Bucket.most_lines = 0
    receivers.Bucket.every = timedelta()
    reading.LOAN_S = float(os.environ.get("SENDER_LOAN_S", reading.LOAN_S))
    while True:
        for pk in sending.due():
            sending.send_undelivered(pk)
        time.sleep(0.01)


if __name__ == "__main__":
    run()
